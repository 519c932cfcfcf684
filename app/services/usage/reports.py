"""Usage reports for `GET /usage`, which include the usage of deleted sessions."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    RowMapping,
    Select,
    Table,
    and_,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import KeptUsage, Turn, TurnStatus
from app.services.usage import tool_usage
from app.services.usage.days import end_of, start_of
from app.services.usage.errors import UsageTooDetailed
from app.services.usage.pricing import usd

ROWS_LIMIT = 10_000

_turns = cast("Table", Turn.__table__)
_kept_usage = cast("Table", KeptUsage.__table__)
_COLUMNS = (
    "created_at", "agent_id", "key_id", "user_id", "model", "turns", "unpriced_turns",
    "prompt_tokens", "cached_tokens", "completion_tokens", "speech_out_characters",
    "speech_in_seconds", "cost_nanos",
)  # fmt: skip
"""Columns of `KeptUsage`, in the order of `_turn_rows`."""
_KEYS = {*_COLUMNS[:5], *tool_usage.COLUMNS[:7]}
"""By these the others are summed up."""
_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "speech_out_characters")


class Group(StrEnum):
    """The dimensions by which a report can be grouped."""

    DAY = "day"
    WEEK = "week"
    """By its Monday."""
    MONTH = "month"
    """By its first day."""
    AGENT = "agent"
    KEY = "key"
    USER = "user"
    MODEL = "model"
    TOOL = "tool"


PERIODS = (Group.DAY, Group.WEEK, Group.MONTH)


@dataclass(frozen=True, slots=True)
class UsageFilters:
    """Which turns a report counts; `None` is all of them."""

    user_id: str | None = None
    agent_id: UUID | None = None
    key_id: str | None = None
    session_id: UUID | None = None


NO_FILTERS = UsageFilters()


@dataclass(frozen=True, slots=True)
class UsageRow:
    """The sums of one group; dimensions that are not grouped by are `None`."""

    day: date | None
    agent_id: UUID | None
    key_id: str | None
    user_id: str | None
    model: str | None
    turns: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    speech_in_seconds: float
    speech_out_characters: int
    cost_usd: float | None
    """Cost of the turns whose price is known; `None` where no turn has one."""
    unpriced_turns: int
    tool_id: UUID | None = None
    tool_name: str | None = None
    tool_calls: int | None = None
    tool_failures: int | None = None
    tool_ms: float | None = None


async def report(  # noqa: PLR0913  # filters of the report
    db: AsyncSession,
    workspace_id: UUID,
    first: date,
    last: date,
    groups: Collection[Group],
    *,
    filters: UsageFilters = NO_FILTERS,
    rows_limit: int = ROWS_LIMIT,
) -> list[UsageRow]:
    """Sum up the settled turns that were accepted on the UTC days `first` to `last`.

    Raises `UsageTooDetailed` where there are more than `rows_limit` rows.
    """
    on_postgres = db.get_bind().dialect.name == "postgresql"
    is_by_tool = Group.TOOL in groups

    def within(table: Table) -> ColumnElement[bool]:
        filtered = [
            table.c[name] == value
            for name in ("user_id", "agent_id", "key_id")
            if (value := getattr(filters, name)) is not None
        ]
        return and_(
            table.c.workspace_id == workspace_id,
            table.c.created_at >= start_of(first),
            table.c.created_at < end_of(last),
            *filtered,
        )

    select_turns = tool_usage.tool_rows(on_postgres=on_postgres) if is_by_tool else _turn_rows()
    of_turns = select_turns.where(within(_turns), _turns.c.ended_at.is_not(None))
    if filters.session_id is not None:
        of_turns = of_turns.where(_turns.c.session_id == filters.session_id)
    kept, columns = (tool_usage.kept, tool_usage.COLUMNS) if is_by_tool else (_kept_usage, _COLUMNS)
    of_deleted: Select[Any] = select(*(kept.c[name] for name in columns)).where(within(kept))
    # What is kept of deleted sessions does not name them.
    parts = [of_turns] if filters.session_id is not None else [of_turns, of_deleted]
    rows = union_all(*parts).subquery()
    keys: dict[Group, ColumnElement[Any]] = {
        **_periods(rows.c.created_at, on_postgres=on_postgres),
        Group.AGENT: rows.c.agent_id,
        Group.KEY: rows.c.key_id,
        Group.USER: rows.c.user_id,
        Group.MODEL: rows.c.model,
    }
    if is_by_tool:
        keys[Group.TOOL] = rows.c.tool_id
    chosen = [keys[group].label(f"by_{group}") for group in Group if group in groups]
    sums = [func.sum(rows.c[name]).label(name) for name in columns if name not in _KEYS]
    if is_by_tool:
        sums += [func.count().label("turns"), func.max(rows.c.tool_name).label("tool_name")]
    statement = select(*chosen, *sums).group_by(*chosen).order_by(*chosen).limit(rows_limit + 1)
    rows = (await db.execute(statement)).mappings().all()
    if len(rows) > rows_limit:
        raise UsageTooDetailed(
            f"The report has more than {rows_limit} rows: request fewer days or groups."
        )
    if is_by_tool:
        return [_tool_row(row) for row in rows if row["turns"]]
    # Requests for sound have no turn; a sum of nothing at all is NULL.
    return [_row(row) for row in rows if row["turns"] is not None]


def _periods(
    created_at: ColumnElement[Any], *, on_postgres: bool
) -> dict[Group, ColumnElement[Any]]:
    """Return the expressions of the first day of each period, as ISO 8601."""
    if on_postgres:
        in_utc = func.timezone("UTC", created_at)
        return {
            group: func.to_char(func.date_trunc(group.value, in_utc), "YYYY-MM-DD")
            for group in PERIODS
        }
    # SQLite has no weeks: from the last day that a week can have, back to a Monday.
    week = func.date(created_at, "-6 days", "weekday 1")
    return {
        Group.DAY: func.date(created_at),
        Group.WEEK: week,
        Group.MONTH: func.date(created_at, "start of month"),
    }


def _turn_rows() -> Select[Any]:
    """Select turns with the columns of `KeptUsage`."""
    columns = _turns.c
    return select(
        columns.created_at,
        columns.agent_id,
        columns.key_id,
        columns.user_id,
        columns.model,
        literal(1).label("turns"),
        case((columns.cost_nanos.is_(None), 1), else_=0).label("unpriced_turns"),
        *(func.coalesce(columns[name], 0).label(name) for name in _COUNTS),
        func.coalesce(columns.speech_in_seconds, 0).label("speech_in_seconds"),
        columns.cost_nanos,
    )


def _row(row: RowMapping) -> UsageRow:
    day = next((row[f"by_{group}"] for group in PERIODS if f"by_{group}" in row), None)
    cost_nanos = row["cost_nanos"]
    return UsageRow(
        day=date.fromisoformat(day) if day else None,
        agent_id=row.get("by_agent"),
        key_id=row.get("by_key"),
        user_id=row.get("by_user"),
        model=row.get("by_model"),
        turns=int(row["turns"]),
        prompt_tokens=int(row["prompt_tokens"]),
        cached_tokens=int(row["cached_tokens"]),
        completion_tokens=int(row["completion_tokens"]),
        speech_in_seconds=round(float(row["speech_in_seconds"]), 2),
        speech_out_characters=int(row["speech_out_characters"]),
        cost_usd=None if cost_nanos is None else usd(int(cost_nanos)),
        unpriced_turns=int(row["unpriced_turns"]),
    )


def _tool_row(row: RowMapping) -> UsageRow:
    nothing = dict.fromkeys(
        (*_COUNTS, "speech_in_seconds", "unpriced_turns"), 0
    )  # is the turn's, and no tool's
    return replace(
        _row(cast("RowMapping", {**row, **nothing})),
        tool_id=row["by_tool"],
        tool_name=row["tool_name"],
        tool_calls=int(row["tool_calls"]),
        tool_failures=int(row["tool_failures"]),
        tool_ms=round(float(row["tool_ms"]), 1),
    )


async def keep_usage_of_session(db: AsyncSession, workspace_id: UUID, session_id: UUID) -> None:
    """Copy the usage of a session that is about to be deleted, also by tool, to where it is kept.

    Each row has its turn's id. A turn that still runs is billed by its server when it ends.
    """
    was_billed_before = and_(_turns.c.status == TurnStatus.QUEUED, _turns.c.model.is_not(None))
    rows = (
        await db.execute(
            _turn_rows()
            .add_columns(_turns.c.id)
            .where(
                _turns.c.workspace_id == workspace_id,
                _turns.c.session_id == session_id,
                or_(_turns.c.ended_at.is_not(None), was_billed_before),
            )
        )
    ).mappings()
    kept_rows = [{**row, "workspace_id": workspace_id} for row in rows]
    if kept_rows:
        await db.execute(insert(_kept_usage), kept_rows)
    await tool_usage.keep_of_session(db, workspace_id, session_id)

"""What was used, summed up: `GET /usage`; and what is kept of a session that is deleted."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
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
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import KeptUsage, Turn, new_id
from app.services.usage.errors import UsageTooDetailed
from app.services.usage.tariff import usd

ROWS_LIMIT = 10_000

_turns = cast("Table", Turn.__table__)
_kept = cast("Table", KeptUsage.__table__)
_KEPT = (
    "created_at", "agent_id", "key_id", "user_id", "model", "turns", "unpriced_turns",
    "prompt_tokens", "cached_tokens", "completion_tokens", "speech_out_characters",
    "speech_in_seconds", "cost_nanos",
)  # fmt: skip
"""In the order of `_of_turns`."""
_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "speech_out_characters")


class Group(StrEnum):
    """What a report can tell apart."""

    DAY = "day"
    AGENT = "agent"
    KEY = "key"
    USER = "user"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums of one group; what it is not grouped by is `None`."""

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
    """Of the turns whose price is known; `None` where there is none."""
    unpriced_turns: int


async def report(  # noqa: PLR0913  # what a report can be asked
    db: AsyncSession,
    workspace_id: UUID,
    first: date,
    last: date,
    groups: Collection[Group],
    *,
    user_id: str | None = None,
    rows_limit: int = ROWS_LIMIT,
) -> list[UsageRow]:
    """Sum up the settled turns that were accepted on the days `first` to `last`, in UTC.

    `user_id` leaves out all others. Raises `UsageTooDetailed` above `rows_limit` rows.
    """
    on_postgres = db.get_bind().dialect.name == "postgresql"
    begin = datetime.combine(first, datetime.min.time(), UTC)
    end = datetime.combine(last + timedelta(days=1), datetime.min.time(), UTC)

    def within(table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        its_user = [table.c.user_id == user_id] if user_id is not None else []
        return and_(
            table.c.workspace_id == workspace_id,
            table.c.created_at >= begin,
            table.c.created_at < end,
            *its_user,
            *conditions,
        )

    of_turns: Select[Any] = _of_turns().where(within(_turns, _turns.c.ended_at.is_not(None)))
    of_deleted: Select[Any] = select(*(_kept.c[name] for name in _KEPT)).where(within(_kept))
    rows = union_all(of_turns, of_deleted).subquery()
    keys: dict[Group, ColumnElement[Any]] = {
        Group.DAY: (
            func.to_char(func.timezone("UTC", rows.c.created_at), "YYYY-MM-DD")
            if on_postgres
            else func.date(rows.c.created_at)
        ),
        Group.AGENT: rows.c.agent_id,
        Group.KEY: rows.c.key_id,
        Group.USER: rows.c.user_id,
        Group.MODEL: rows.c.model,
    }
    chosen = [keys[group].label(f"by_{group}") for group in Group if group in groups]
    names = ("turns", *_COUNTS, "speech_in_seconds", "cost_nanos", "unpriced_turns")
    statement = (
        select(*chosen, *(func.sum(rows.c[name]).label(name) for name in names))
        .group_by(*chosen)
        .order_by(*chosen)
        .limit(rows_limit + 1)
    )
    found = (await db.execute(statement)).mappings().all()
    if len(found) > rows_limit:
        raise UsageTooDetailed(
            f"The report has more than {rows_limit} rows: ask for fewer days or groups."
        )
    return [_row(row) for row in found if row["turns"]]


def _of_turns() -> Select[Any]:
    """Turns in the shape of `KeptUsage`."""
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
    day, cost_nanos = row.get("by_day"), row["cost_nanos"]
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


async def keep_usage_of_session(db: AsyncSession, workspace_id: UUID, session_id: UUID) -> None:
    """Remember what a session used that is about to be deleted."""
    rows = (
        await db.execute(
            _of_turns().where(
                _turns.c.workspace_id == workspace_id,
                _turns.c.session_id == session_id,
                _turns.c.ended_at.is_not(None),
            )
        )
    ).mappings()
    kept = [{**row, "workspace_id": workspace_id, "id": new_id()} for row in rows]
    if kept:
        await db.execute(insert(_kept), kept)

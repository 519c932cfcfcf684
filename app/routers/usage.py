"""`/usage`: reports of usage and cost."""

import re
from datetime import date, timedelta
from difflib import get_close_matches
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BeforeValidator, StringConstraints

from app.core.errors import AppError, ErrorKind
from app.core.security import Forbidden
from app.http.deps import Accounts, Caller, ReadingDb, Storage
from app.http.endpoint_route import EndpointRoute
from app.models import utc_now
from app.schemas.chat import UserId
from app.schemas.identity import KeyId
from app.schemas.usage import BudgetRead, UsageRowRead
from app.services.usage import reports, standings
from app.services.usage.reports import PERIODS, Group, UsageFilters, UsageRow
from app.services.usage.standings import Standing

router = APIRouter(prefix="/usage", tags=["usage"], route_class=EndpointRoute)

_DAYS_LIMIT = 366
_DEFAULT_DAYS = 30
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class UsageRangeInvalid(AppError):
    """The range of days is not valid."""

    kind = ErrorKind.INVALID
    code = "usage-range-invalid"


def _refuse_times(value: object) -> object:
    if isinstance(value, str) and not _DATE.fullmatch(value):
        raise ValueError("must be a date like 2026-11-23")
    return value


def _known_groups(given: str) -> str:
    names = [name for name in given.split(",") if name]
    unknown = next((name for name in names if name not in set(Group)), None)
    if unknown is not None or (given and len(names) != given.count(",") + 1):
        near = get_close_matches(unknown or "", list(Group), n=1)
        hint = f"; did you mean `{near[0]}`" if near else ""
        raise ValueError(f"takes {', '.join(Group)}, separated by commas{hint}")
    if len(set(names) & set(PERIODS)) > 1:
        raise ValueError(f"takes one of {', '.join(PERIODS)}")
    return given


GroupBy = Annotated[str, StringConstraints(max_length=100), AfterValidator(_known_groups)]
Day = Annotated[date, BeforeValidator(_refuse_times)]


@router.get("", response_model=list[UsageRowRead])
async def get_usage(  # noqa: PLR0913, PLR0917  # one per query parameter
    db: ReadingDb,
    caller: Caller,
    first: Annotated[
        Day | None,
        Query(
            alias="from", description="The first day, in UTC. By default the report has 30 days."
        ),
    ] = None,
    last: Annotated[
        Day | None,
        Query(alias="to", description="The last day, inclusive, in UTC. Default: today."),
    ] = None,
    group_by: Annotated[
        GroupBy,
        Query(
            description="Any of agent, key, user, model, tool and one of day, week, month, "
            "separated by commas; empty for one total.",
        ),
    ] = "day",
    user_id: UserId | None = None,
    agent_id: UUID | None = None,
    key_id: KeyId | None = None,
    session_id: Annotated[
        UUID | None, Query(description="A session that exists; deleted ones are not named.")
    ] = None,
) -> list[UsageRow]:
    """Report the usage of finished turns. A turn counts on the day on which it was accepted.

    `cost_usd` is the sum over the turns whose price is known, `null` if there are none;
    `unpriced_turns` is the number of the others.
    """
    last = last or utc_now().date()
    if not date(2000, 1, 1) <= (first or last) <= last <= date(2999, 12, 31):
        raise UsageRangeInvalid(
            "`from` must not be after `to`, and both must be between the years 2000 and 2999."
        )
    first = first or last - timedelta(days=_DEFAULT_DAYS - 1)
    if (last - first).days >= _DAYS_LIMIT:
        raise UsageRangeInvalid(
            f"A report covers at most {_DAYS_LIMIT} days: request several shorter reports."
        )
    groups = {Group(name) for name in group_by.split(",") if name}
    filters = UsageFilters(_own_user(caller, user_id), agent_id, key_id, session_id)
    return await reports.report(db, caller.workspace_id, first, last, groups, filters=filters)


@router.get("/budgets", response_model=list[BudgetRead])
async def get_budgets(  # noqa: PLR0913, PLR0917  # what an endpoint can ask for
    db: ReadingDb,
    caller: Caller,
    accounts: Accounts,
    storage: Storage,
    user_id: UserId | None = None,
    key_id: KeyId | None = None,
) -> list[Standing]:
    """List how budgets stand: an end user's own; for keys and the admin, the workspace's."""
    user_id = _own_user(caller, user_id) if user_id is not None else None
    return await standings.standings(db, caller, accounts, storage, user_id=user_id, key_id=key_id)


def _own_user(caller: Caller, user_id: str | None) -> str | None:
    """Return the end user to report on. Raises `Forbidden` where it is another than the caller."""
    if caller.user_id is not None and user_id not in {None, caller.user_id}:
        raise Forbidden("An end user sees their own usage alone: omit `user_id`.")
    return user_id if caller.user_id is None else caller.user_id

"""`/usage`: what was used, and what it cost."""

import re
from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BeforeValidator

from app.core.errors import AppError, ErrorKind
from app.models import utc_now
from app.routers.deps import Caller, ReadingDb
from app.routers.strict_route import StrictRoute
from app.schemas.usage import UsageRowRead
from app.services.usage import reports
from app.services.usage.reports import Group, UsageRow

router = APIRouter(prefix="/usage", tags=["usage"], route_class=StrictRoute)

_DAYS_LIMIT = 366
_DEFAULT_DAYS = 30
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_GROUPS = "|".join(Group)


class UsageRangeInvalid(AppError):
    """The range of days is not valid."""

    kind = ErrorKind.INVALID
    code = "usage-range-invalid"


def _only_dates(given: object) -> object:
    if isinstance(given, str) and not _DATE.fullmatch(given):
        raise ValueError("must be a date like 2026-11-23")
    return given


Day = Annotated[date, BeforeValidator(_only_dates)]


@router.get("", response_model=list[UsageRowRead])
async def get_usage(
    db: ReadingDb,
    caller: Caller,
    first: Annotated[
        Day | None, Query(alias="from", description="The first day, in UTC; 30 days by default.")
    ] = None,
    last: Annotated[
        Day | None, Query(alias="to", description="The last day, included; today by default.")
    ] = None,
    group_by: Annotated[
        str,
        Query(
            pattern=rf"^(({_GROUPS})(,({_GROUPS}))*)?$",
            max_length=100,
            description="Any of day, agent, key, user, model, with commas between them; empty "
            "for one sum.",
        ),
    ] = "day",
) -> list[UsageRow]:
    """Sum up what settled turns used. A turn counts on the day on which it was accepted.

    `cost_usd` is the sum of the turns whose price is known, `null` where none is;
    `unpriced_turns` counts the others.
    """
    last = last or utc_now().date()
    if not date(2000, 1, 1) <= (first or last) <= last <= date(2999, 12, 31):
        raise UsageRangeInvalid("`from` must not be after `to`, and both be of this millennium.")
    first = first or last - timedelta(days=_DEFAULT_DAYS - 1)
    if (last - first).days >= _DAYS_LIMIT:
        raise UsageRangeInvalid(f"A report has at most {_DAYS_LIMIT} days.")
    groups = {Group(name) for name in group_by.split(",") if name}
    return await reports.report(
        db, caller.workspace_id, first, last, groups, user_id=caller.user_id
    )

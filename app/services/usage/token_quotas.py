"""How many tokens a caller has left for today, for headers: read now and then, not per request."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from app.core.database import Database, StorageUnavailable
from app.core.database.transactions import TransactionScript
from app.core.limits import Quota
from app.core.security import Caller
from app.models import utc_now
from app.services.usage import budgets
from app.services.usage.accounts import NO_LIMIT, AccountDirectory, Bucket
from app.services.usage.days import end_of

_FRESH_SECONDS = 10.0
_MOST_CALLERS = 10_000


@dataclass(frozen=True, slots=True)
class _Reading:
    day: date
    due_at: float
    quota: Quota


class TokenQuotas:
    """Tells quotas of tokens that are at most some seconds old; one instance serves the process."""

    def __init__(
        self,
        database: Database,
        accounts: AccountDirectory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._clock = clock
        self._readings: dict[tuple[UUID, str], _Reading] = {}

    async def of(self, caller: Caller) -> Quota | None:
        """Return the quota that is nearest its end; `None` without a limit, or the database."""
        account = self._accounts.of(caller)
        limited = [
            bucket for bucket in account.budgets(account.user_id) if bucket.tokens_limit < NO_LIMIT
        ]
        if not limited:
            return None
        key = caller.workspace_id, " ".join(bucket.name for bucket in limited)
        known, today = self._readings.get(key), utc_now().date()
        if known and known.day == today and self._clock() < known.due_at:
            return known.quota
        try:
            quota = await self._database.run(_read, caller.workspace_id, limited, today)
        except StorageUnavailable:
            return None
        if len(self._readings) >= _MOST_CALLERS:
            self._readings.clear()
        self._readings[key] = _Reading(today, self._clock() + _FRESH_SECONDS, quota)
        return quota


def _read(workspace_id: UUID, limited: list[Bucket], today: date) -> TransactionScript[Quota]:
    answers = yield [
        budgets.USED(workspace_id_=workspace_id, bucket_=bucket.name) for bucket in limited
    ]
    reset_at = int(end_of(today).timestamp())
    quotas: list[tuple[int, int]] = []
    for bucket, rows in zip(limited, answers, strict=True):
        used = rows[0][2] if rows and rows[0][0] >= today else 0
        quotas.append((max(0, bucket.tokens_limit - used), bucket.tokens_limit))
    remaining, limit = min(quotas)
    return Quota("tokens", str(limit), str(remaining), reset_at)

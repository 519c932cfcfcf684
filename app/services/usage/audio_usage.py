"""What requests for transcripts and speech without a turn use: reserved, settled, and reported.

Such a request has no row while it runs. Its usage is a row of `kept_usage` with no turn in it, so
reports and budgets include it; while it runs it counts as a turn.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import cast
from uuid import UUID

import anyio
from sqlalchemy import Table, bindparam, insert

from app.core.capabilities import Capability
from app.core.database import CommitOutcomeUnknown, Database, StorageUnavailable
from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript
from app.core.security import Caller
from app.models import KeptUsage, new_id, utc_now
from app.services.usage import budgets
from app.services.usage.accounts import Account, AccountDirectory, Reservation
from app.services.usage.pricing import BillableUsage, PriceTable
from app.services.usage.storage import ROW_BYTES, StorageMeter

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 10


@dataclass(slots=True)
class AudioUsage:
    """What one request has used so far; written by whoever serves it."""

    speech_in_seconds: float = 0
    speech_out_characters: int = 0

    @property
    def is_nothing(self) -> bool:
        """True where the provider did nothing that it is paid for."""
        return not (self.speech_in_seconds or self.speech_out_characters)


@dataclass(frozen=True, slots=True)
class AudioMeter:
    """Charges requests for transcripts and speech to their callers."""

    database: Database
    accounts: AccountDirectory
    storage: StorageMeter

    @asynccontextmanager
    async def charging(
        self, caller: Caller, most: AudioUsage, agent_id: UUID | None
    ) -> AsyncGenerator[AudioUsage]:
        """Reserve the `most` that a request can use; charge what it has used after the block.

        It is charged where the block raises or is cancelled, too. Raises `TooManyTurns`,
        `UploadsExhausted`, `BudgetExhausted`, `StorageFull` and `StorageUnavailable`; then nothing
        is charged.
        """
        account, accepted_at = self.accounts.of(caller), utc_now()
        await self.storage.require_room(caller.workspace_id, ROW_BYTES)
        reservation = account.reservation(accepted_at, _billable(most))
        await self.database.run(budgets.reserve, account, reservation)
        used = AudioUsage()
        try:
            yield used
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_SETTLE_SECONDS):
                try:
                    await self.database.run(
                        _settle, account, reservation, used, accepted_at, new_id(), agent_id
                    )
                except (StorageUnavailable, CommitOutcomeUnknown):  # what was reserved stays
                    logger.warning("the usage of a request for sound could not be stored")


def _settle(  # noqa: PLR0913, PLR0917  # a column each
    account: Account,
    reservation: Reservation | None,
    used: AudioUsage,
    accepted_at: datetime,
    row_id: UUID,
    agent_id: UUID | None,
) -> TransactionScript[None]:
    """Store what was used, and give back the rest of the reservation."""
    cost = account.tariff.cost(_billable(used), accepted_at.date())
    statements = budgets.settle_stmts(account.workspace_id, reservation, 0, cost.budget_nanos)
    if not used.is_nothing:
        row = _INSERT(
            workspace_id=account.workspace_id,
            id=row_id,
            created_at=accepted_at,
            agent_id=agent_id,
            key_id=account.key_id,
            user_id=account.user_id,
            model=_model(account.tariff, used),
            turns=0,
            unpriced_turns=0 if cost.is_complete else 1,
            prompt_tokens=0,
            cached_tokens=0,
            completion_tokens=0,
            speech_in_seconds=used.speech_in_seconds,
            speech_out_characters=used.speech_out_characters,
            cost_nanos=cost.known_nanos if cost.is_complete else None,
        )
        statements = [row, *statements]
    if statements:
        yield statements


def _billable(used: AudioUsage) -> BillableUsage:
    return BillableUsage(
        speech_in_seconds=used.speech_in_seconds, speech_out_characters=used.speech_out_characters
    )


def _model(tariff: PriceTable, used: AudioUsage) -> str | None:
    """Return the model that served; `None` for the embedded engine."""
    part = Capability.STT if used.speech_in_seconds else Capability.TTS
    return None if part in tariff.free_capabilities else tariff.models.get(part)


_kept_usage = cast("Table", KeptUsage.__table__)
_INSERT = PreparedStatement(
    lambda _: insert(_kept_usage).values({each: bindparam(each.name) for each in _kept_usage.c})
)

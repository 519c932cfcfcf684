"""Admits uploads before they are decoded, and charges those that turn out to be no turn."""

from collections.abc import Callable
from uuid import UUID

from app.core.database import Database
from app.core.security import Caller
from app.services.turns.records import RequestKey
from app.services.turns.storage import admission
from app.services.usage import AccountDirectory, budgets


class UploadAdmission:
    """Checks what `TurnEngine.start` would refuse anyway, whatever is in an upload."""

    def __init__(
        self,
        database: Database,
        accounts: AccountDirectory,
        require_room: Callable[[Caller, UUID], None],
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._require_room = require_room

    async def admit(self, caller: Caller, session_id: UUID, key: RequestKey | None = None) -> None:
        """Raise what `TurnEngine.start` would; nothing is stored."""
        self._require_room(caller, session_id)
        account = self._accounts.of(caller)
        await self._database.run(admission.check, account, session_id, key)

    async def admit_anywhere(self, caller: Caller) -> None:
        """Raise what `TurnEngine.start` would in any session of the caller; nothing is stored."""
        self._require_room(caller, caller.session_id or UUID(int=0))
        await self._database.run(budgets.require_left, self._accounts.of(caller))

    async def charge(self, caller: Caller, seconds: float) -> None:
        """Count a recording that was decoded in vain against the caller's minutes of the day."""
        if seconds:
            account = self._accounts.of(caller)
            await self._database.run(budgets.charge_upload, account, seconds)

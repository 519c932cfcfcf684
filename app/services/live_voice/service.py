"""Opens lines, within the limits of their number."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from app.core.database import Database
from app.core.security import Caller
from app.services.live_voice.config import LineConfig, LineTimes
from app.services.live_voice.errors import LinesFull, TooManyLines
from app.services.live_voice.items import LineConversation
from app.services.live_voice.outbox import Outbox
from app.services.live_voice.sessions import LineSession, find_session
from app.services.turn_end_port import TurnEndJudge
from app.services.turns import TurnEngine
from app.services.turns.errors import ServerDraining
from app.services.turns.execution.message_input import MessageInput
from app.services.usage import RequestLimiter, StorageMeter
from app.services.voice import VoiceTurns

if TYPE_CHECKING:
    from app.services.live_voice.line import Line

_RETRY_SECONDS = 10


class LiveService:
    """Opens the lines of this process; one instance serves it."""

    def __init__(  # noqa: PLR0913, PLR0917  # a part each
        self,
        turns: TurnEngine,
        voices: VoiceTurns,
        database: Database,
        limiter: RequestLimiter,
        lines_limit: int,
        lines_per_key: int,
        message_input: MessageInput,
        storage: StorageMeter,
        turn_end_judge: TurnEndJudge | None = None,
    ) -> None:
        """`turn_end_judge` hears for `semantic_vad` whether a sentence is finished."""
        self._turns = turns
        self._voices = voices
        self._database = database
        self._limiter = limiter
        self._lines_limit = lines_limit
        self._lines_per_key = lines_per_key
        self._message_input = message_input
        self._storage = storage
        self._turn_end_judge = turn_end_judge
        self.times = LineTimes()
        self._open: Counter[tuple[UUID, str | None]] = Counter()

    @property
    def line_count(self) -> int:
        """How many lines are open."""
        return self._open.total()

    @property
    def is_draining(self) -> bool:
        """True once the server shuts down; then lines end behind their response."""
        return self._turns.is_draining

    @contextmanager
    def place(self, caller: Caller) -> Generator[None]:
        """Count a line during the block.

        Raises `TooManyLines`, `LinesFull` and `ServerDraining`.
        """
        if self.is_draining:
            raise ServerDraining("This server is shutting down.", retry_after_seconds=1)
        key = (caller.workspace_id, caller.key_id)
        if self._open[key] >= self._lines_per_key:
            raise TooManyLines(
                f"The limit is {self._lines_per_key} open lines for each key: close one.",
                retry_after_seconds=_RETRY_SECONDS,
            )
        if self.line_count >= self._lines_limit:
            raise LinesFull(
                "This server has as many lines open as it can serve.",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    async def find_session(
        self, caller: Caller, agent: UUID | str | None, session_id: UUID | None
    ) -> LineSession:
        """Return the session of a line to open: see `sessions.find_session`."""
        return await find_session(self._database, caller, agent, session_id)

    def open(self, caller: Caller, session: LineSession, config: LineConfig) -> "Line":
        """Return a line, which is not running yet."""
        from app.services.live_voice.early_listener import EarlyListener  # these need NumPy
        from app.services.live_voice.line import Line
        from app.services.live_voice.line_parts import LineParts

        async def admit(posted_bytes: int) -> None:
            await self._limiter.admit(caller)
            if posted_bytes:
                await self._storage.require_room(caller.workspace_id, posted_bytes)

        parts = LineParts(
            self._turns,
            self._voices,
            self._database,
            caller,
            session,
            LineConversation(),
            Outbox(),
            EarlyListener(caller, session, self._turns, self._voices),
            admit,
            self._message_input,
            self._turn_end_judge,
        )
        return Line(parts, config)

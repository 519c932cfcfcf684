"""Stream a stored turn in a dialect, and read the requests for it."""

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.types import Scope

from app.core.database import Database, StorageUnavailable
from app.core.errors import AppError
from app.core.security import Caller
from app.http.frame_stream import FrameStream
from app.http.idempotency import REPLAYED
from app.http.tool_resolution import may_approve
from app.models import BusyPolicy
from app.routers.ui_streams.conversation import ContinuedTurn
from app.routers.ui_streams.dialect import PING, UIDialect
from app.routers.ui_streams.new_input import invalid_message
from app.services.turns import TurnEngine, subscribe
from app.services.turns.errors import ServerDraining
from app.services.turns.events import EventValue, RequiredAction, TurnInProgress

_BUSY_HEADER = b"x-on-busy"


def busy_policy(scope: Scope) -> BusyPolicy:
    """Return what `X-On-Busy` says. Raises `RequestInvalid`."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    given = headers.get(_BUSY_HEADER, BusyPolicy.ENQUEUE.value.encode()).decode("latin-1")
    try:
        return BusyPolicy(given)
    except ValueError:
        names = ", ".join(f"`{policy}`" for policy in BusyPolicy)
        raise invalid_message(f"The header X-On-Busy is one of {names}.") from None


def run_key(thread_id: str, run_id: str) -> bytes:
    """Return the idempotency key of a run, which clients number themselves."""
    return b"run-" + hashlib.sha256(f"{thread_id}\n{run_id}".encode()).hexdigest().encode()


class TurnStream:
    """The frames of one turn."""

    def __init__(self, state: dict[str, Any], turn: ContinuedTurn, dialect: UIDialect) -> None:
        """`state` is the request's."""
        self._engine: TurnEngine = state["turns"]
        self._database: Database = state["database"]
        self._caller: Caller = state["caller"]
        self._live = turn.live
        self._first_attempt = turn.first_attempt
        self._dialect = dialect
        self._has_begun = False
        self._may_be_cancelled = False

    def response(
        self, more_headers: Mapping[str, str] | None = None, *, cancels_on_disconnect: bool = False
    ) -> FrameStream:
        """Return the response that streams the turn; errors before its first byte are raised."""
        self._may_be_cancelled = cancels_on_disconnect
        record = self._live.record
        headers = {"X-Session-Id": str(record.session_id), "X-Turn-Id": str(record.id)}
        headers |= more_headers or {}
        if self._live.is_replayed:
            headers[REPLAYED] = "true"
        return FrameStream(self._frames(), self._encode_error, self._on_end, headers)

    async def _on_end(self) -> None:
        if self._may_be_cancelled:
            await self._engine.cancel(self._caller, self._live.record.id)

    async def _frames(self) -> AsyncGenerator[bytes]:
        try:
            async for values in self._batches():
                if not values:
                    yield PING
                elif frames := self._encode(values):
                    yield frames
        except ServerDraining:  # without a last frame, so that the client knows
            self._may_be_cancelled = False
            return
        except (AppError, StorageUnavailable) as error:
            if not self._has_begun:
                raise
            yield self._encode_error(error)
            return
        self._may_be_cancelled = False
        yield self._begin() + self._dialect.end()

    async def _batches(self) -> AsyncGenerator[Sequence[EventValue]]:
        """Yield the turn's events, up to the end of the attempt that the client waits for."""
        after = 0
        while True:
            stream = subscribe(self._engine, self._database, self._live, after)
            async with aclosing(stream) as batches:
                async for events in batches:
                    after = events[-1].number if events else after
                    yield [event.value for event in events]
            # The stream of an attempt that waits ends, although the next one may have begun.
            if self._has_begun or self._first_attempt > self._live.record.attempt:
                return

    def _encode(self, values: Sequence[EventValue]) -> bytes:
        """Return the frames of events; nothing for those that the client was shown before."""
        if not self._has_begun and self._first_attempt > 1:
            start = next((n for n, value in enumerate(values) if self._is_new(value)), len(values))
            self._dialect.encode(values[:start])
            values = values[start:]
            if not values:
                return b""
        return self._begin() + self._dialect.encode(values)

    def _is_new(self, value: EventValue) -> bool:
        return isinstance(value, TurnInProgress) and value.attempt >= self._first_attempt

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._dialect.begin()

    def _encode_error(self, error: AppError) -> bytes:
        return self._dialect.fail(error.code, error.detail)


def approval_check(caller: Caller, *, is_known: bool = True) -> Callable[[RequiredAction], bool]:
    """Return what tells whether the caller may approve what an action asks for.

    `is_known`: the client knows approvals.
    """

    def check(action: RequiredAction) -> bool:
        return is_known and may_approve(caller, action.by)

    return check

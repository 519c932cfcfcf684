"""What the endpoints of unstored turns share: start one, and give its answer in a dialect."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID

import anyio
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope

from app.core.errors import AppError
from app.http.disconnection import unless_disconnected
from app.http.frame_stream import FrameStream
from app.http.idempotency import REPLAYED
from app.http.openai_errors import error_body, mark_final
from app.http.plain_endpoint import ReadRequest
from app.http.request_body import (
    JSON_TYPE,
)
from app.routers.agent_names import agent_of
from app.routers.openai.attachments import checked_lines
from app.routers.openai.chat_frames import PING
from app.services.turns import (
    LiveTurn,
    TurnEngine,
    TurnOptions,
    TurnRequest,
    follow_here,
)
from app.services.turns.errors import AnswerNotKept, InternalError, is_retryable
from app.services.turns.events import (
    TERMINAL,
    EventValue,
    OutputTextDelta,
    ReasoningText,
    ToolCallArguments,
)

SILENCE_SECONDS = 10.0
_NO_SESSION = UUID(int=0)
SHOWN = (OutputTextDelta, ReasoningText, ToolCallArguments)


class Dialect(Protocol):
    """Encodes one turn."""

    def begin(self) -> bytes:
        """Return the first frames of a stream."""
        ...

    def encode(self, values: list[EventValue]) -> bytes:
        """Return the frames of events."""
        ...

    def complete(self, live: LiveTurn) -> bytes:
        """Return the last frames of an answer that has ended."""
        ...

    def fail(self, error: dict[str, Any]) -> bytes:
        """Return the last frames of an answer that broke off."""
        ...

    def whole(self, live: LiveTurn) -> dict[str, Any]:
        """Return the answer as one object."""
        ...


async def start_unstored(
    scope: Scope, given: ReadRequest[Any], model: str, request: TurnRequest
) -> LiveTurn:
    """Start the unstored turn that a request asks for. Raises what every endpoint of turns does."""
    turns: TurnEngine = scope["state"]["turns"]
    prompt = await checked_lines(
        scope["state"], given.caller, model, request.prompt or (), is_stored=False
    )
    request = replace(request, prompt=prompt)
    options = TurnOptions(
        key=given.key, keeps_content=False, agent=agent_of(model), request=request
    )
    live = await turns.start(given.caller, _NO_SESSION, "", None, options)
    if not live.settled.is_set() and not turns.holds(live):
        raise AnswerNotKept("Another server answers this request, and no answer is stored.")
    return live


class UnstoredAnswer:
    """One turn's answer, as one object or as a stream."""

    def __init__(self, live: LiveTurn, dialect: Dialect) -> None:
        self._live = live
        self._dialect = dialect
        self._is_typed = live.record.has_answer_schema
        live.client_count += 1

    async def response(self, receive: Receive, *, is_stream: bool) -> Response:
        """Return the answer; as a stream it is sent as the turn runs. Raises the turn's error."""
        headers = {REPLAYED: "true"} if self._live.is_replayed else {}
        if is_stream:
            return FrameStream(self._frames(), self._encode_error, self._leave, headers)
        try:
            await unless_disconnected(receive, self._leave, self._live.settled.wait)
        except anyio.get_cancelled_exc_class():
            await self._leave()
            raise
        self._raise_error()
        body = orjson.dumps(self._dialect.whole(self._live))
        return Response(body, headers=headers, media_type=JSON_TYPE)

    async def _leave(self) -> None:
        """Cancel the turn where nobody waits for it any more: nothing of it could be asked for."""
        self._live.client_count -= 1
        if self._live.client_count <= 0 and not self._live.settled.is_set():
            self._live.scope.cancel()

    async def _frames(self) -> AsyncGenerator[bytes]:
        """Yield the stream; raises the turn's error as long as nothing was yielded."""
        has_begun = False
        async with aclosing(follow_here(self._live, SILENCE_SECONDS)) as batches:
            async for batch in batches:
                is_over = bool(batch) and batch[-1].type in TERMINAL
                values = self._shown(batch)
                if batch and not values:
                    continue
                if not has_begun:
                    if values and not is_over and not any(isinstance(v, SHOWN) for v in values):
                        continue
                    if is_over:
                        self._raise_error()
                    has_begun = True
                    yield self._dialect.begin()
                frames = self._dialect.encode(list(values)) if values else PING
                if frames:
                    yield frames
        if not has_begun:
            self._raise_error()
        outcome = self._live.outcome
        error = outcome.error if outcome else None
        if outcome and not error and self._is_typed and outcome.content:
            yield self._dialect.encode([OutputTextDelta(outcome.content)])
        yield self._encode_error(error) if error else self._dialect.complete(self._live)

    def _shown(self, values: Sequence[EventValue]) -> Sequence[EventValue]:
        """Leave out the text of an answer that may be rejected: it is sent once it is valid."""
        if not self._is_typed:
            return values
        return [value for value in values if not isinstance(value, OutputTextDelta)]

    def _encode_error(self, error: AppError) -> bytes:
        return self._dialect.fail(error_body(error))

    def _raise_error(self) -> None:
        if self._live.outcome is None:
            raise InternalError("The server failed to answer; its log says why.")
        raise_turn_error(self._live)


def raise_turn_error(live: LiveTurn) -> None:
    """Raise the error that a turn ended with, if any; one that stays is marked for SDKs."""
    error = live.outcome.error if live.outcome else None
    if error:
        if not is_retryable(error):
            mark_final(error)
        raise error.with_traceback(None)

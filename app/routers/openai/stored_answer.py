"""The answer of a stored turn as a response: one object, or a stream that can be resumed."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response

from app.core.database import Database
from app.core.errors import AppError
from app.core.security import Caller
from app.http.frame_stream import FrameStream
from app.http.idempotency import REPLAYED
from app.http.openai_errors import error_body
from app.http.request_body import JSON_TYPE
from app.models import MessageStatus, TurnStatus
from app.routers.openai.chat_frames import PING
from app.routers.openai.response_object import LENGTH, response_fields, stored_response
from app.routers.openai.responses_frames import ResponseEvents, ResponseHead, answer_values
from app.routers.openai.unstored_answer import SILENCE_SECONDS, raise_turn_error
from app.services import crud
from app.services.turns import LiveTurn, TurnEngine, TurnEvent, TurnRequest, subscribe
from app.services.turns.errors import ServerDraining, error_of_code
from app.services.turns.events import (
    OutputTextDelta,
    TurnCancelled,
    TurnCompleted,
    TurnCreated,
    TurnFailed,
    TurnInProgress,
    TurnQueued,
)
from app.services.turns.execution.event_log import AFTER_ATTEMPT

_NUMBERS_OF_AN_ATTEMPT = 10 * AFTER_ATTEMPT
"""More than the frames of as many events."""


class StoredResponse:
    """One stored turn's answer."""

    def __init__(self, state: dict[str, Any], live: LiveTurn, model: str = "") -> None:
        """`model` is what a turn of another API is shown with."""
        self._engine: TurnEngine = state["turns"]
        self._database: Database = state["database"]
        self._caller: Caller = state["caller"]
        self._live = live
        self._model = model

    async def now(self) -> Response:
        """Return the response as it is stored at this moment."""
        return self._respond(await read_response(self._database, self._caller, self._live))

    async def whole(self) -> Response:
        """Wait for the answer. Raises the error that the turn ended with."""
        await self._engine.wait(self._live)
        live, outcome = self._live, self._live.outcome
        if outcome is None or outcome.status is not TurnStatus.CANCELLED:
            raise_turn_error(live)
        if outcome is None or live.progress.finish_reason is None or live.progress.ended_at is None:
            return await self.now()
        events = ResponseEvents(self._head(), shows_calls=True)
        is_typed = live.record.has_answer_schema
        events.encode(answer_values(outcome.content, outcome.parts, is_typed=is_typed))
        if outcome.status is TurnStatus.CANCELLED:
            events.cancel(live.progress.usage)
        elif outcome.status is TurnStatus.COMPLETED:
            reason = live.progress.finish_reason
            events.complete(reason, live.progress.usage, int(live.progress.ended_at.timestamp()))
        return self._respond(events.response)

    def stream(self, shown_after: int = -1) -> Response:
        """Return the events above the number `shown_after`, up to the end of the turn."""
        return FrameStream(self._frames(shown_after), _encode_error, _stay, self._headers())

    def _respond(self, response: dict[str, Any]) -> Response:
        body = orjson.dumps(response, default=str)
        return Response(body, headers=self._headers(), media_type=JSON_TYPE)

    def _headers(self) -> dict[str, str]:
        return {REPLAYED: "true"} if self._live.is_replayed else {}

    def _head(self) -> ResponseHead:
        record = self._live.record
        request = record.request or TurnRequest()
        fields = response_fields(record.id, record.created_at, request, is_stored=True)
        fields["model"] = fields["model"] or self._model
        return ResponseHead(record.message_id, fields)

    async def _frames(self, shown_after: int) -> AsyncGenerator[bytes]:
        live = self._live
        frames = ResponseFrames(self._head(), is_typed=live.record.has_answer_schema)
        frames.events.shown_after = shown_after
        batches = subscribe(self._engine, self._database, live, 0, SILENCE_SECONDS)
        try:
            async with aclosing(batches):
                async for batch in batches:
                    if not batch:
                        yield PING
                        continue
                    sent = frames.encode(batch)
                    if batch[-1].is_terminal:
                        sent += frames.end(batch[-1], await self._finish_reason(batch[-1]))
                    if sent:
                        yield sent
        except ServerDraining:
            return  # without a last frame, so that the client knows that it is not the end

    async def _finish_reason(self, last: TurnEvent) -> str | None:
        """Return why the model stopped, which no event says."""
        if not isinstance(last.value, TurnCompleted):
            return None
        if last.value.message.status is MessageStatus.TRUNCATED:
            return LENGTH
        live = self._engine.current(self._live)
        if live.progress.finish_reason:
            return live.progress.finish_reason
        async with self._database.reading() as db:
            turn, _ = await crud.get_turn(db, self._caller, live.record.id)
            return turn.finish_reason


class ResponseFrames:
    """From a stored turn's events to frames; their numbers depend on the events alone.

    What an earlier attempt showed has lower numbers than what the next one shows.
    """

    def __init__(self, head: ResponseHead, *, is_typed: bool) -> None:
        self.events = ResponseEvents(head, shows_calls=True)
        self._is_typed = is_typed
        self._last_number = 0

    def encode(self, batch: Sequence[TurnEvent]) -> bytes:
        """Return the frames of events; the last one of a turn has none here."""
        return b"".join([self._encode(event) for event in batch])

    def end(self, event: TurnEvent, finish_reason: str | None) -> bytes:
        """Return the last frames, for the last event of the turn."""
        value = event.value
        if isinstance(value, TurnCompleted):
            text = b""
            if self._is_typed and value.message.content:
                text = self.events.encode([OutputTextDelta(value.message.content)])
            ended_at = int(value.message.created_at.timestamp())
            return text + self.events.complete(finish_reason, value.usage, ended_at)
        if isinstance(value, TurnCancelled):
            return self.events.cancel(None)
        if isinstance(value, TurnFailed):
            return self.events.fail(error_body(error_of_code(value.error.code, value.error.detail)))
        return b""

    def _encode(self, event: TurnEvent) -> bytes:
        value, number = event.value, event.number
        if number - self._last_number > AFTER_ATTEMPT // 2:
            self.events.restart(number // AFTER_ATTEMPT * _NUMBERS_OF_AN_ATTEMPT)
        self._last_number = number
        if isinstance(value, TurnCreated):
            return self.events.announce("created", "in_progress")
        if isinstance(value, TurnQueued):
            return self.events.announce("queued", "queued")
        if isinstance(value, TurnInProgress):
            return self.events.announce("in_progress", "in_progress")
        if self._is_typed and isinstance(value, OutputTextDelta):
            return b""  # it may be rejected: it is sent once it is valid
        return self.events.encode([value])


async def read_response(database: Database, caller: Caller, live: LiveTurn) -> dict[str, Any]:
    """Return a turn as it is stored. Raises `ResponseNotFound`."""
    async with database.reading() as db:
        return stored_response(await crud.get_response_turn(db, caller, live.record.id))


def _encode_error(error: AppError) -> bytes:
    return b"event: error\ndata: " + orjson.dumps({"type": "error"} | error_body(error)) + b"\n\n"


async def _stay() -> None:
    """The turn goes on without its client."""

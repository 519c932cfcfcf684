"""Chat completions of a session that `X-Session-Id` names: stored turns in chunks."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import orjson
from starlette.responses import Response

from app.core.database import Database
from app.core.errors import AppError
from app.http.frame_stream import FrameStream
from app.http.idempotency import REPLAYED
from app.http.openai_errors import InvalidParameter, error_body
from app.http.request_body import JSON_TYPE
from app.models import MessageStatus
from app.routers.openai.chat_frames import PING
from app.routers.openai.response_object import LENGTH
from app.routers.openai.unstored_answer import SHOWN, SILENCE_SECONDS, Dialect, raise_turn_error
from app.schemas.openai_chat import ChatCompletionCreate
from app.services.turns import LiveTurn, TurnEngine, subscribe
from app.services.turns.errors import ServerDraining, TurnInterrupted
from app.services.turns.events import OutputTextDelta, TurnInProgress

SESSION, TASK = b"x-session-id", b"x-task"
_LONGEST_NAME = 200
_TASK_PROMPT = "### Task:"
_INSTRUCTIONS = ("system", "developer")


def session_name(headers: Mapping[bytes, bytes], body: ChatCompletionCreate) -> str | None:
    """Return the session that a request names; `None` where nothing of it is stored.

    Open WebUI asks for titles and tags in the name of the chat: these have `X-Task`, or a prompt
    that says so. Raises `InvalidParameter`.
    """
    name = headers.get(SESSION, b"").decode("latin-1").strip()
    if not name or headers.get(TASK, b"").strip() or _is_task(body):
        return None
    if len(name) > _LONGEST_NAME or not all(" " < character <= "~" for character in name):
        raise InvalidParameter("X-Session-Id", "It takes 1 to 200 visible ASCII characters.")
    return name


def _is_task(body: ChatCompletionCreate) -> bool:
    of_user = [message for message in body.messages if message.get("role") == "user"]
    if len(of_user) != 1:
        return False
    content: object = of_user[0].get("content")
    return isinstance(content, str) and content.startswith(_TASK_PROMPT)


def newest_messages(body: ChatCompletionCreate) -> ChatCompletionCreate:
    """Return a request with what follows its last answer, and its system messages."""
    roles = [message.get("role") for message in body.messages]
    last = max((place for place, role in enumerate(roles) if role == "assistant"), default=-1)
    newest = [
        message
        for place, message in enumerate(body.messages)
        if place > last or roles[place] in _INSTRUCTIONS
    ]
    return body.model_copy(update={"messages": newest})


class StoredCompletion:
    """One stored turn's answer as a chat completion; the turn goes on without its client."""

    def __init__(self, state: dict[str, Any], live: LiveTurn, dialect: Dialect) -> None:
        self._engine: TurnEngine = state["turns"]
        self._database: Database = state["database"]
        self._live = live
        self._dialect = dialect
        record = live.record
        self._is_typed = record.has_answer_schema
        self._headers = {"X-Session-Id": str(record.session_id), "X-Turn-Id": str(record.id)}
        if live.is_replayed:
            self._headers[REPLAYED] = "true"

    async def whole(self) -> Response:
        """Wait for the answer. Raises the error that the turn ended with."""
        body = orjson.dumps(self._dialect.whole(await self._settled()))
        return Response(body, headers=self._headers, media_type=JSON_TYPE)

    async def stream(self) -> Response:
        """Return the answer as it comes; an error before its first word is raised."""
        return FrameStream(self._frames(), _encode_error, _stay, self._headers)

    async def _settled(self) -> LiveTurn:
        live = self._engine.current(self._live)
        await self._engine.wait(live)
        raise_turn_error(live)
        progress, outcome = live.progress, live.outcome
        if outcome and progress.finish_reason is None:  # another server, or an earlier request
            is_cut_off = outcome.message_status is MessageStatus.TRUNCATED
            progress.finish_reason = LENGTH if is_cut_off else "stop"
        return live

    async def _frames(self) -> AsyncGenerator[bytes]:
        has_begun = False
        batches = subscribe(self._engine, self._database, self._live, 0, SILENCE_SECONDS)
        try:
            async with aclosing(batches):
                async for batch in batches:
                    values = [event.value for event in batch]
                    shown = [value for value in values if self._is_shown(value)]
                    if has_begun and any(isinstance(value, TurnInProgress) for value in values):
                        yield _encode_error(TurnInterrupted("The answer began anew: ask again."))
                        return
                    if shown or not batch:
                        if not has_begun:
                            has_begun = True
                            yield self._dialect.begin()
                        yield self._dialect.encode(shown) if shown else PING
        except ServerDraining:
            return
        try:
            live = await self._settled()
        except AppError as error:
            if not has_begun:
                raise
            yield _encode_error(error)
            return
        if not has_begun:
            yield self._dialect.begin()
        if self._is_typed and live.outcome and live.outcome.content:
            yield self._dialect.encode([OutputTextDelta(live.outcome.content)])
        yield self._dialect.complete(live)

    def _is_shown(self, value: object) -> bool:
        if self._is_typed and isinstance(value, OutputTextDelta):
            return False  # it may be rejected: it is sent once it is valid
        return isinstance(value, SHOWN)


def _encode_error(error: AppError) -> bytes:
    return b"data: " + orjson.dumps(error_body(error)) + b"\n\ndata: [DONE]\n\n"


async def _stay() -> None:
    """The turn goes on without its client."""

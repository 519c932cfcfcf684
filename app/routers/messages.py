"""`/messages`: talk to an agent, in text or by voice."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar
from uuid import UUID

import anyio
import orjson
from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import Response

from app.core.database import Database
from app.core.security import Caller as CallerIdentity
from app.routers.deps import Caller, Data, Turns, Voice
from app.routers.idempotency import REPLAYED, Key
from app.routers.sound import sound_response
from app.routers.streams import SSE_CONTENT, EventStream, OnDisconnect, until_left, wants_events
from app.routers.strict_route import StrictRoute
from app.schemas.chat import OnBusy, ReplyRead, TextMessageCreate
from app.schemas.chat import OnDisconnect as WhenLeft
from app.services import turns as turn_words
from app.services.turns import LiveTurn, RequestKey, TurnEngine, TurnOptions

router = APIRouter(prefix="/messages", tags=["messages"], route_class=StrictRoute)

T = TypeVar("T")


@router.post(
    "/text",
    response_model=ReplyRead,
    responses={200: {"content": SSE_CONTENT, "description": "The answer, or the turn's events"}},
)
async def send_text(  # noqa: PLR0913, PLR0917  # what an endpoint can ask for
    body: TextMessageCreate, request: Request, turns: Turns, data: Data, caller: Caller, key: Key
) -> Response:
    """Send a message and get the agent's answer.

    With `Accept: text/event-stream` the turn is streamed as it happens. Both sides are stored,
    and the turn goes on if the client leaves: `GET /turns/{id}` tells its end.
    """
    live = await start_text(turns, caller, body, key)
    left = _when_left(turns, caller, live, body.on_disconnect)
    if wants_events(request):
        return text_events(turns, data, live, left)
    await _unless_left(request, left, lambda: turns.result(live))
    return await text_reply(turns, live)


async def start_text(
    turns: TurnEngine, caller: CallerIdentity, body: TextMessageCreate, key: RequestKey | None
) -> LiveTurn:
    """Accept a text turn. Raises what `TurnEngine.start` does."""
    options = TurnOptions(turn_words.OnBusy(body.on_busy.value), key)
    return await turns.start(caller, body.session_id, body.content, None, options)


def text_events(
    turns: TurnEngine, data: Database, live: LiveTurn, left: OnDisconnect | None = None
) -> Response:
    """Answer with the turn's events."""
    headers = {REPLAYED: "true"} if live.is_replayed else {}
    return EventStream(engine=turns, database=data, live=live, on_disconnect=left, headers=headers)


async def text_reply(turns: TurnEngine, live: LiveTurn) -> Response:
    """Answer with the turn's reply, once it is settled. Raises the error that it ended with."""
    reply = await turns.result(live)
    headers = {REPLAYED: "true"} if live.is_replayed else {}
    # As `ReplyRead` would: asyncpg has a UUID of its own, which only `str` understands.
    shaped = orjson.dumps(reply, default=str, option=orjson.OPT_UTC_Z)
    return Response(shaped, headers=headers, media_type="application/json")


@router.post(
    "/voice",
    response_class=Response,
    responses={
        200: {
            "content": {"audio/mpeg": {}, **SSE_CONTENT},
            "description": "The spoken answer as MP3, or the turn's events",
        }
    },
)
async def send_voice(  # noqa: PLR0913, PLR0917  # what an endpoint can ask for
    request: Request,
    session_id: Annotated[UUID, Form()],
    audio: Annotated[UploadFile, File(description="wav, mp3, m4a, webm, ogg or flac")],
    turns: Turns,
    voice: Voice,
    data: Data,
    caller: Caller,
    key: Key,
    on_busy: Annotated[OnBusy, Form()] = OnBusy.ENQUEUE,
    on_disconnect: Annotated[WhenLeft, Form()] = WhenLeft.CONTINUE,
) -> Response:
    """Send a recording and hear the agent's answer as MP3.

    The header `X-Transcription` has what was understood, percent-encoded where it is not plain
    ASCII; the whole text is in the session's messages. The headers come with the first sound,
    so that a failure before it is a problem document. With `Accept: text/event-stream` the turn
    is streamed instead: transcript, text, and a clip of MP3 for each sentence.
    """
    options = TurnOptions(turn_words.OnBusy(on_busy.value), key)
    streams = wants_events(request)
    answer = await voice.reply_to_recording(
        caller, session_id, await audio.read(), options, with_clips=streams
    )
    left = _when_left(turns, caller, answer.turn, on_disconnect)
    headers = {REPLAYED: "true"} if answer.turn.is_replayed else {}
    if streams:
        return EventStream(
            engine=turns, database=data, live=answer.turn, on_disconnect=left, headers=headers
        )
    await _unless_left(request, left, answer.first_sound)
    return sound_response(answer, headers=headers, left=left)


def _when_left(
    turns: TurnEngine, caller: CallerIdentity, live: LiveTurn, choice: WhenLeft
) -> OnDisconnect | None:
    """Return what is to be done when the client leaves, if anything."""
    if choice is WhenLeft.CONTINUE:
        return None

    async def cancel() -> None:
        await turns.cancel(caller, live.record.id)

    return cancel


async def _unless_left(
    request: Request,
    left: OnDisconnect | None,
    work: Callable[[], Awaitable[T]],
) -> T:
    """Await `work`, and call `left` if the client goes away before it is done."""
    if left is None:
        return await work()
    results: list[T] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(until_left, request, left)
        try:
            results.append(await work())
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failure = error
        group.cancel_scope.cancel()
    if failure:
        raise failure
    return results[0]

"""The response to a message that is a recording, or whose answer is spoken."""

from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive

from app.core.database import Database
from app.core.security import Caller
from app.http.accepted_turn import accepted_response
from app.http.audio_response import audio_response
from app.http.disconnection import cancel_on_disconnect, unless_disconnected
from app.http.event_stream import EventStream
from app.http.idempotency import REPLAYED
from app.http.request_body import JSON_TYPE
from app.http.voice_headers import voice_headers
from app.models import Modality
from app.schemas.chat import DisconnectPolicy, ReplyRead, VoiceReplyRead
from app.services.turns import TurnEngine
from app.services.voice import VoiceAnswer


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """Who asks for an answer, and how it is wanted."""

    caller: Caller
    turns: TurnEngine
    database: Database
    receive: Receive
    on_disconnect: DisconnectPolicy
    in_background: bool
    as_events: bool


async def voice_answer_response(request: AnswerRequest, answer: VoiceAnswer) -> Response:
    """Return the answer as MP3, JSON or events, or the turn in the background.

    Raises the error that the turn ended with, if that is before the first audio.
    """
    turns, caller, live = request.turns, request.caller, answer.turn
    if request.in_background:
        return await accepted_response(request.database, caller, live)
    disconnected = cancel_on_disconnect(turns, caller, live, request.on_disconnect)
    headers = {REPLAYED: "true"} if live.is_replayed else {}
    if request.as_events:
        return EventStream(
            engine=turns,
            database=request.database,
            live=live,
            on_disconnect=disconnected,
            headers=headers,
        )

    async def waiting_response() -> Response:
        return await accepted_response(request.database, caller, live, is_preferred=False)

    async def respond() -> Response:
        if live.record.output is Modality.TEXT:
            await turns.wait(live)
            if live.waits_for_action:
                return await waiting_response()
            return await _written_response(turns, answer, headers)
        await answer.first_sound()
        if live.voice and not live.voice.spoken_characters:  # it ends without a word
            await turns.wait(live)
            if live.waits_for_action:
                return await waiting_response()
        return audio_response(answer, headers=headers, on_disconnect=disconnected)

    if disconnected:
        return await unless_disconnected(request.receive, disconnected, respond)
    return await respond()


async def _written_response(
    turns: TurnEngine, answer: VoiceAnswer, headers: dict[str, str]
) -> Response:
    reply = ReplyRead.model_validate(await answer.written(turns))
    written = VoiceReplyRead(**reply.model_dump(), transcription=answer.transcript.text)
    return Response(
        written.model_dump_json(), headers=voice_headers(answer) | headers, media_type=JSON_TYPE
    )

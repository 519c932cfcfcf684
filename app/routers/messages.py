"""`POST /messages/voice`: send a recording to an agent."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import Response

from app.http.accepted_turn import ACCEPTED_RESPONSE, PreferHeader, prefers_async
from app.http.content_negotiation import prefers_event_stream
from app.http.deps import Caller, DatabaseDep, Turns, Voice
from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import Key
from app.http.openapi import BINARY_SCHEMA, EVENT_STREAM_CONTENT, MP3_CONTENT, VOICE_HEADERS
from app.http.voice_answer import AnswerRequest, voice_answer_response
from app.models import BusyPolicy, Modality
from app.schemas.chat import DisconnectPolicy, VoiceReplyRead
from app.services.turns import TurnOptions

router = APIRouter(prefix="/messages", tags=["messages"], route_class=EndpointRoute)


@router.post(
    "/voice",
    name="send_voice_message",
    response_class=Response,
    responses={
        200: {
            "model": VoiceReplyRead,
            "content": {**MP3_CONTENT, **EVENT_STREAM_CONTENT},
            "description": "The spoken answer as MP3, with `output=text` the written one, or the "
            "turn's events",
            "headers": VOICE_HEADERS,
        },
        202: ACCEPTED_RESPONSE,
    },
)
async def send_voice(  # noqa: PLR0913, PLR0917  # what an endpoint can ask for
    request: Request,
    session_id: Annotated[UUID, Form()],
    audio: Annotated[
        UploadFile,
        File(description="wav, mp3, m4a, webm, ogg or flac", json_schema_extra=BINARY_SCHEMA),
    ],
    turns: Turns,
    voice: Voice,
    data: DatabaseDep,
    caller: Caller,
    key: Key,
    prefer: PreferHeader = None,
    on_busy: Annotated[BusyPolicy, Form()] = BusyPolicy.ENQUEUE,
    on_disconnect: Annotated[DisconnectPolicy, Form()] = DisconnectPolicy.CONTINUE,
    output: Annotated[
        Modality, Form(description="How the answer is given: as MP3 (`voice`), or JSON (`text`).")
    ] = Modality.VOICE,
) -> Response:
    """Send a recording and get the agent's spoken answer as MP3, or its written answer.

    The header `X-Transcription` has the transcript of the recording, percent-encoded and possibly
    truncated; the session's messages have the whole text. The response begins with the first
    audio, so a failure before it is a problem document. With `Accept: text/event-stream` the
    turn's events are streamed instead: transcript, text, and a clip of MP3 for each sentence. With
    `Prefer: respond-async` the turn runs in the background: `GET /turns/{id}/audio` has its audio.
    With `output=text` no speech is made: the answer is JSON, and its events have no clips.
    """
    streams = prefers_event_stream(request.headers.raw)
    answer = await voice.reply_to_recording(
        caller,
        session_id,
        await audio.read(),
        TurnOptions(on_busy, key),
        with_clips=streams,
        speaks=output is Modality.VOICE,
    )
    answer_request = AnswerRequest(
        caller,
        turns,
        data,
        request.receive,
        on_disconnect,
        in_background=prefers_async(prefer.encode("latin-1", "replace") if prefer else None),
        as_events=streams,
    )
    return await voice_answer_response(answer_request, answer)

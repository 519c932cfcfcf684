"""`POST /v1/audio/speech`: speak a text, without a turn."""

from base64 import b64encode
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Receive, Scope
from typing_extensions import override

from app.core.errors import AppError
from app.http.content_negotiation import EVENT_STREAM_TYPE
from app.http.endpoint_route import EndpointRoute
from app.http.openai_errors import InvalidParameter, error_body
from app.http.openapi import BINARY_SCHEMA, DIALECT_STREAM_CONTENT
from app.http.plain_endpoint import METHOD, endpoint, read_request
from app.http.pushed_stream import Emit, PushedStream
from app.routers.openai.audio_agent import find_audio_agent
from app.routers.openai.chat_frames import PING
from app.schemas.openai_audio import SpeechCreate
from app.services.voice.audio_requests import AudioRequests, SpeechRequest
from app.services.voice.speech_formats import SpeechFormat

PATH = "/v1/audio/speech"
ROUTE = (METHOD, PATH)
_CHARACTERS_PER_TOKEN, _TOKENS_PER_SECOND = 4, 20
"""About what OpenAI counts of its own models; here it is an estimate."""


async def _respond(scope: Scope, receive: Receive) -> Response:
    given = await read_request(scope, receive, PATH, SpeechCreate)
    requests: AudioRequests = scope["state"]["audio_requests"]
    request = await _speech_request(scope["state"], requests, given.body)

    async def speak(emit: Emit) -> None:
        await requests.speak(given.caller, request, emit)

    async def speak_as_events(emit: Emit) -> None:
        async def emit_sound(piece: bytes) -> None:
            audio = b64encode(piece).decode()
            await emit(_frame({"type": "speech.audio.delta", "audio": audio}))

        seconds = await requests.speak(given.caller, request, emit_sound)
        await emit(_frame({"type": "speech.audio.done", "usage": _usage(request.text, seconds)}))

    if given.body.stream_format == "sse":
        return PushedStream(
            speak_as_events, EVENT_STREAM_TYPE, encode_error=encode_error, ping=PING
        )
    return PushedStream(speak, request.format.media_type)


async def _speech_request(
    state: dict[str, Any], requests: AudioRequests, body: SpeechCreate
) -> SpeechRequest:
    """Return what the request asks for. Raises `InvalidParameter`."""
    if not body.input.strip():
        raise InvalidParameter("input", "There is nothing in it to speak.")
    voice = body.voice if isinstance(body.voice, str | None) else body.voice.id
    if voice is not None and requests.voice_names and voice not in requests.voice_names:
        names = ", ".join(sorted(requests.voice_names))
        raise InvalidParameter("voice", f"There is no such voice. There are: {names}.")
    if body.speed != 1 and not requests.has_speeds:
        raise InvalidParameter(
            "speed", "The server's speech has one speed: leave `speed` out.", "unsupported_value"
        )
    agent = await find_audio_agent(state, state["caller"], body.model)
    return SpeechRequest(
        text=body.input,
        format=SpeechFormat(body.response_format),
        voice=voice or agent.voice,
        speed=body.speed,
        language=agent.language,
        agent_id=agent.id,
    )


def _usage(text: str, seconds: float) -> dict[str, int]:
    given = -(-len(text) // _CHARACTERS_PER_TOKEN)
    made = round(seconds * _TOKENS_PER_SECOND)
    return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}


def encode_error(error: AppError) -> bytes:
    """Return the last frame of events that break off."""
    return _frame(error_body(error))


def _frame(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


create_speech = endpoint(_respond)


class _SpeechRoute(EndpointRoute):
    """Describes the endpoint as FastAPI's routes do, and serves the plain application."""

    @override
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = create_speech


router = APIRouter(tags=["openai"], route_class=_SpeechRoute)


@router.post(
    PATH,
    name="create_speech",
    response_class=Response,
    responses={
        200: {
            "content": {
                **{form.media_type: {"schema": BINARY_SCHEMA} for form in SpeechFormat},
                **DIALECT_STREAM_CONTENT,
            },
            "description": "The speech as it is made, or with `stream_format: sse` its events",
        }
    },
)
async def describe_speech(body: SpeechCreate) -> Response:
    """Speak a text, in the words of OpenAI's API.

    The answer begins with the first sentence. Nothing is stored but the usage; speech whose client
    leaves is not made further.
    """
    raise AssertionError(body, "`create_speech` serves it")

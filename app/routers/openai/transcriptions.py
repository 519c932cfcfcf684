"""`POST /v1/audio/transcriptions`: transcribe a recording, without a turn."""

import math
from collections import Counter
from typing import Annotated, Any, Literal

import anyio
import orjson
from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import ValidationError
from starlette.datastructures import FormData
from starlette.datastructures import UploadFile as FormFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope
from typing_extensions import override

from app.core.errors import AppError
from app.core.security import Caller
from app.http.content_negotiation import EVENT_STREAM_TYPE
from app.http.disconnection import unless_disconnected
from app.http.endpoint_route import EndpointRoute
from app.http.multipart import close_files, read_any_multipart
from app.http.openai_errors import InvalidParameter
from app.http.openapi import BINARY_SCHEMA, DIALECT_STREAM_CONTENT
from app.http.permissions import endpoint_policy
from app.http.plain_endpoint import METHOD, endpoint
from app.http.problems import MalformedBody, invalid_request
from app.http.pushed_stream import Emit, PushedStream
from app.http.query_parameters import require_known_parameters
from app.http.request_body import (
    FORM_BYTES,
    FORM_TYPE,
    JSON_TYPE,
    body_error,
    bounded_receive,
    require_announced_length,
    require_media_type,
)
from app.routers.openai.audio_agent import find_audio_agent
from app.routers.openai.chat_frames import PING
from app.routers.openai.speech import encode_error
from app.routers.openai.transcript_formats import (
    short_form,
    srt,
    usage_fields,
    verbose_form,
    vtt,
)
from app.schemas.openai_audio import TranscriptFormat, TranscriptionCreate
from app.services.transcript_times import NO_TIMES, TimeUnit
from app.services.voice.audio_requests import AudioRequests, MadeTranscript, TranscriptRequest

PATH = "/v1/audio/transcriptions"
ROUTE = (METHOD, PATH)
_GRANULARITIES = "timestamp_granularities[]"
_MOST_FIELDS = 50
_STREAMED = (TranscriptFormat.JSON, TranscriptFormat.TEXT)


async def _respond(scope: Scope, receive: Receive) -> Response:
    caller: Caller = scope["state"]["caller"]
    endpoint_policy((METHOD,), PATH).check(caller)
    require_known_parameters(scope.get("query_string", b"").decode("latin-1"), ())
    data, body = await _read_form(scope, receive)
    requests: AudioRequests = scope["state"]["audio_requests"]
    times = _times(body, requests.time_units)
    agent = await find_audio_agent(scope["state"], caller, body.model)
    language = body.language or agent.language
    language = language.partition("-")[0] if language else None
    request = TranscriptRequest(language, body.prompt, times, agent.id)
    if body.stream:
        return _stream(requests, caller, data, request)
    made = await _unless_left(receive, requests, caller, data, request)
    return _whole(made, body, times, language)


async def _read_form(scope: Scope, receive: Receive) -> tuple[bytes, TranscriptionCreate]:
    """Return the file and the fields. Raises what every endpoint does, and `InvalidParameter`."""
    request = Request(scope, bounded_receive(FORM_BYTES, receive))
    require_media_type(request.headers.get("content-type", ""), FORM_TYPE)
    require_announced_length(request.headers.get("content-length", ""), FORM_BYTES)
    try:
        form = await read_any_multipart(request, max_files=1, max_fields=_MOST_FIELDS)
    except ClientDisconnect:
        raise MalformedBody("The body broke off.") from None
    except HTTPException as error:
        raise body_error(error) from None
    try:
        file = form.get("file")
        if not isinstance(file, FormFile):
            raise InvalidParameter("file", "It is missing.", "missing_required_parameter")
        return await file.read(), _fields(form)
    finally:
        close_files(form)


def _fields(form: FormData) -> TranscriptionCreate:
    texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    for name, count in Counter(name for name, _ in texts).items():
        if count > 1 and name != _GRANULARITIES and name in TranscriptionCreate.model_fields:
            raise InvalidParameter(name, "It is there more than once.")
    for name, value in texts:
        if "\x00" in value:
            raise InvalidParameter(name[:100], "It must not contain the NUL character.")
    fields: dict[str, Any] = {name: value for name, value in texts if value}
    fields[_GRANULARITIES] = [value for name, value in texts if name == _GRANULARITIES]
    try:
        return TranscriptionCreate.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise invalid_request(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in faults]
        ) from None


def _times(body: TranscriptionCreate, units: frozenset[TimeUnit]) -> frozenset[TimeUnit]:
    """Return which times are needed. Raises `InvalidParameter` for what there is not."""
    form = body.response_format
    if form is TranscriptFormat.DIARIZED_JSON:
        raise _unsupported("response_format", "Speakers are not told apart.")
    if body.granularities and form is not TranscriptFormat.VERBOSE_JSON:
        raise InvalidParameter(_GRANULARITIES, "It needs `response_format: verbose_json`.")
    if body.stream and form not in _STREAMED:
        raise _unsupported("response_format", "A stream has events: ask for `json` or `text`.")
    if form in _STREAMED:
        return NO_TIMES
    if TimeUnit.SEGMENT not in units:
        raise _unsupported(
            "response_format", "The server's model tells no times: ask for `json` or `text`."
        )
    times = frozenset(map(TimeUnit, body.granularities)) or frozenset((TimeUnit.SEGMENT,))
    if not times <= units:
        raise _unsupported(_GRANULARITIES, "The server's model tells no times of words.")
    return times


def _unsupported(param: str, detail: str) -> InvalidParameter:
    return InvalidParameter(param, detail, "unsupported_value")


async def _unless_left(
    receive: Receive,
    requests: AudioRequests,
    caller: Caller,
    data: bytes,
    request: TranscriptRequest,
) -> MadeTranscript:
    """Transcribe, unless the client leaves meanwhile: then the provider is asked no further."""
    working = anyio.CancelScope()

    async def leave() -> None:
        working.cancel()

    async def work() -> MadeTranscript | None:
        with working:
            return await requests.transcribe(caller, data, request)
        return None

    made = await unless_disconnected(receive, leave, work)
    if made is None:
        raise MalformedBody("The client left.")
    return made


def _whole(
    made: MadeTranscript,
    body: TranscriptionCreate,
    times: frozenset[TimeUnit],
    language: str | None,
) -> Response:
    match body.response_format:
        case TranscriptFormat.TEXT:
            return PlainTextResponse(f"{made.transcript.text}\n")
        case TranscriptFormat.SRT:
            return PlainTextResponse(srt(made.transcript))
        case TranscriptFormat.VTT:
            return Response(vtt(made.transcript), media_type="text/vtt")
        case TranscriptFormat.VERBOSE_JSON:
            form = verbose_form(
                made,
                language,
                has_segments=TimeUnit.SEGMENT in times,
                has_words=TimeUnit.WORD in times,
            )
        case _:
            form = short_form(made)
    return Response(orjson.dumps(form), media_type=JSON_TYPE)


def _stream(
    requests: AudioRequests, caller: Caller, data: bytes, request: TranscriptRequest
) -> Response:
    async def transcribe(emit: Emit) -> None:
        send, receive = anyio.create_memory_object_stream[str](math.inf)
        made: MadeTranscript | None = None
        failure: AppError | None = None
        has_words = False

        async def pass_on() -> None:
            nonlocal has_words
            async with receive:
                async for words in receive:
                    has_words = True
                    await emit(_delta(words))

        async with anyio.create_task_group() as group:
            group.start_soon(pass_on)
            with send:
                try:
                    made = await requests.transcribe(caller, data, request, send.send_nowait)
                except AppError as error:
                    failure = error
        if failure or made is None:
            raise failure or MalformedBody("The client left.")
        text = made.transcript.text
        if text and not has_words:  # the provider answers as a whole
            await emit(_delta(text))
        usage = usage_fields(made.duration_seconds)
        await emit(_frame({"type": "transcript.text.done", "text": text, "usage": usage}))

    return PushedStream(transcribe, EVENT_STREAM_TYPE, encode_error=encode_error, ping=PING)


def _delta(words: str) -> bytes:
    return _frame({"type": "transcript.text.delta", "delta": words})


def _frame(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


create_transcription = endpoint(_respond)


class _TranscriptionRoute(EndpointRoute):
    """Describes the endpoint as FastAPI's routes do, and serves the plain application."""

    @override
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = create_transcription


router = APIRouter(tags=["openai"], route_class=_TranscriptionRoute)
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}


@router.post(
    PATH,
    name="create_transcription",
    response_model=None,
    responses={
        200: {
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/plain": _TEXT,
                "text/vtt": _TEXT,
                **DIALECT_STREAM_CONTENT,
            },
            "description": "The transcript in the form of `response_format`, or its events",
        }
    },
)
async def describe_transcription(  # noqa: PLR0913, PLR0917  # what an endpoint can ask for
    file: Annotated[
        UploadFile,
        File(description="wav, mp3, m4a, webm, ogg or flac", json_schema_extra=BINARY_SCHEMA),
    ],
    model: Annotated[
        str,
        Form(description="Any name. That of an agent stands for the agent's language, too."),
    ],
    language: Annotated[str | None, Form(description="ISO 639-1, such as `en`.")] = None,
    prompt: Annotated[str | None, Form()] = None,
    response_format: Annotated[TranscriptFormat, Form()] = TranscriptFormat.JSON,
    granularities: Annotated[
        list[Literal["word", "segment"]] | None, Form(alias="timestamp_granularities[]")
    ] = None,
    stream: Annotated[bool, Form()] = False,  # noqa: FBT002  # a field of the form
) -> Response:
    """Transcribe a recording, in the words of OpenAI's API.

    Nothing is stored but the usage. A recording in which nobody speaks has an empty text.
    """
    given = file, model, language, prompt, response_format, granularities, stream
    raise AssertionError(given, "`create_transcription` serves it")

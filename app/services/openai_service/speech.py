"""Speech to text by `POST /audio/transcriptions`, text to speech by `POST /audio/speech`."""

import secrets
from collections.abc import AsyncGenerator

import orjson

from app.services.openai_service.client import Answer, OpenAIClient
from app.services.openai_service.failures import failure_of_error
from app.services.openai_service.parse import clean, parse_json
from app.services.openai_service.pcm import SAMPLE_RATE_HZ, PcmReader
from app.services.openai_service.sse import EventReader
from app.services.openai_service.wire import Upload
from app.services.ports import (
    AudioFormat,
    OnWords,
    Recording,
    Transcript,
    UpstreamIncomplete,
)

_STT_SETTING = "STT_MODEL"
_TTS_SETTING = "TTS_MODEL"
MAX_CHARACTERS = 4096
_MAX_TRANSCRIPT_BYTES = 4 << 20
_UPLOAD_BYTES_PER_SECOND = 128 << 10
_SLOWEST_TRANSCRIBER = 0.1
"""Seconds of work for a second of sound, above which a provider is taken for dead."""
_ISO_639_1_LENGTH = 2

_CONTENT_TYPES = {
    AudioFormat.WAV: "audio/wav",
    AudioFormat.MP3: "audio/mpeg",
    AudioFormat.MP4: "audio/mp4",
    AudioFormat.WEBM: "audio/webm",
    AudioFormat.OGG: "audio/ogg",
    AudioFormat.FLAC: "audio/flac",
}


class OpenAITranscriber:
    """Fulfils `Transcriber`."""

    def __init__(self, client: OpenAIClient, model: str) -> None:
        self._client = client
        self._model = model

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        on_words: OnWords | None = None,
    ) -> Transcript:
        """Fulfil `Transcriber.transcribe`. Long uploads are given longer to be answered.

        OpenAI's transcribing models stream, Whisper does not; a server that knows nothing of it
        answers as a whole.
        """
        fields = {"model": self._model, "response_format": "json"}
        if on_words and "transcribe" in self._model:
            fields["stream"] = "true"
        if language:
            fields["language"] = language
        patience_seconds = (
            len(recording.data) / _UPLOAD_BYTES_PER_SECOND
            + recording.duration_seconds * _SLOWEST_TRANSCRIBER
        )
        form = _form(recording, fields)
        with await self._client.post(
            "audio/transcriptions", form, setting=_STT_SETTING, patience_seconds=patience_seconds
        ) as answer:
            if on_words and answer.media_type == "text/event-stream":
                return await _read_stream(answer, on_words)
            return _read_transcript(await answer.read_all(_MAX_TRANSCRIPT_BYTES))


class OpenAISpeaker:
    """Fulfils `Speaker` through `/audio/speech`; every voice name is passed on."""

    def __init__(self, client: OpenAIClient, model: str) -> None:
        self._client = client
        self._model = model

    @property
    def sample_rate_hz(self) -> int:
        """OpenAI's `pcm` is 24 kHz."""
        return SAMPLE_RATE_HZ

    @property
    def max_characters(self) -> int:
        """OpenAI's limit."""
        return MAX_CHARACTERS

    async def speak(self, text: str, *, voice: str) -> AsyncGenerator[bytes]:
        """Fulfil `Speaker.speak`."""
        body = orjson.dumps(
            {"model": self._model, "voice": voice, "input": clean(text), "response_format": "pcm"}
        )
        with await self._client.post("audio/speech", body, setting=_TTS_SETTING) as answer:
            if answer.media_type in {"text/html", "application/json"}:
                raise UpstreamIncomplete(
                    "The AI provider answered without sound; check TTS_MODEL and TTS_BASE_URL."
                )
            pcm = PcmReader(text)
            while piece := await answer.read():
                if samples := pcm.feed(piece):
                    yield samples
            if samples := pcm.end():
                yield samples


def _form(recording: Recording, fields: dict[str, str]) -> Upload:
    """Return the recording and `fields` as multipart/form-data (RFC 7578)."""
    boundary = secrets.token_hex(16)
    disposition = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = [f'{disposition}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    head.append(
        f'{disposition}"file"; filename="audio.{recording.format}"\r\n'
        f"Content-Type: {_CONTENT_TYPES[recording.format]}\r\n\r\n"
    )
    return Upload(
        f"multipart/form-data; boundary={boundary}",
        ("".join(head).encode(), recording.data, f"\r\n--{boundary}--\r\n".encode()),
    )


async def _read_stream(answer: Answer, on_words: OnWords) -> Transcript:
    """Read `transcript.text.delta` events up to `transcript.text.done`."""
    reader = EventReader()
    read_bytes = 0
    while piece := await answer.read():
        read_bytes += len(piece)
        if read_bytes > _MAX_TRANSCRIPT_BYTES or reader.overflowed:
            break
        for data in reader.feed(piece):
            if data == b"[DONE]":
                continue
            kind, delta = _read_event(data)
            if kind == "transcript.text.delta":
                on_words(delta)
            elif kind in {"transcript.text.done", "error", ""}:
                return _read_transcript(data)
    raise UpstreamIncomplete("The AI provider's transcript broke off.")


def _read_event(data: bytes) -> tuple[str, str]:
    """Return an event's type and its text, empty where it has none."""
    event = parse_json(data)
    try:
        return str(event.get("type") or ""), clean(str(event.get("delta") or ""))
    except AttributeError:
        return "", ""


def _read_transcript(body: bytes) -> Transcript:
    value = parse_json(body)
    try:
        if error := value.get("error"):
            raise failure_of_error(error, setting=_STT_SETTING)
        language = str(value.get("language") or "").lower().partition("-")[0]
        return Transcript(
            text=clean(value["text"]).strip(),
            language=language if _is_iso_639_1(language) else None,
        )
    except (AttributeError, KeyError, TypeError):
        raise UpstreamIncomplete("The AI provider's transcript has no text.") from None


def _is_iso_639_1(language: str) -> bool:
    return len(language) == _ISO_639_1_LENGTH and language.isascii() and language.isalpha()

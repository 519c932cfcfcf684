"""Speech to text by `POST /audio/transcriptions`, text to speech by `POST /audio/speech`."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

import orjson

from app.core.storable_text import storable_text
from app.services.openai_service.compressed_speech import SpeechDecoder
from app.services.openai_service.pcm import (
    PLAIN,
    SAMPLE_RATE_HZ,
    CompressedSpeech,
    PcmReader,
)
from app.services.ports import (
    STANDARD_VOICES,
    AudioFormat,
    OnWords,
    Recording,
    SampleFormat,
    Transcript,
    UpstreamIncomplete,
)
from app.services.provider_http.client import ProviderClient, ProviderResponse
from app.services.provider_http.failures import SettingNames, failure_of_error
from app.services.provider_http.http1_pool import Upload
from app.services.provider_http.parse import SurrogateJoiner, parse_json
from app.services.provider_http.sse import EventReader
from app.services.transcript_times import NO_TIMES, TimedText, TimeUnit

_STT_SETTING = "STT_MODEL"
_TTS_SETTING = "TTS_MODEL"
MAX_CHARACTERS = 4096
COMPATIBLE_MODEL = "tts-1"
"""The name that servers with OpenAI's API take for their own model."""
OPENAI_VOICES = STANDARD_VOICES | {
    "ash", "ballad", "cedar", "coral", "marin", "sage", "verse"
}  # fmt: skip
"""Of `/audio/speech` and of Realtime models together."""
_MAX_TRANSCRIPT_BYTES = 4 << 20
_UPLOAD_BYTES_PER_SECOND = 128 << 10
_SLOWEST_TRANSCRIBER = 0.1
"""Seconds of work for a second of sound, above which a provider is taken for dead."""
_ISO_639_1_LENGTH = 2
_BLANK = b" \t\r\n\xef\xbb\xbf"
_CONVERTIBLE = frozenset({"audio/pcm", "audio/x-pcm", "audio/raw"})
_NO_SOUND = frozenset({"text/html", "application/json", "application/problem+json"})

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

    def __init__(self, client: ProviderClient, model: str) -> None:
        self._client = client
        self._model = model

    @property
    def time_units(self) -> frozenset[TimeUnit]:
        """Whisper tells both; OpenAI's newer models tell none."""
        return frozenset(TimeUnit) if "whisper" in self._model.lower() else NO_TIMES

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        prompt: str | None = None,
        times: frozenset[TimeUnit] = NO_TIMES,
        on_words: OnWords | None = None,
    ) -> Transcript:
        """Fulfil `Transcriber.transcribe`. Long uploads are given longer to be answered.

        OpenAI's transcribing models stream, Whisper does not; a server that knows nothing of it
        answers as a whole.
        """
        fields = [("model", self._model), ("response_format", "verbose_json" if times else "json")]
        if on_words and "transcribe" in self._model:
            fields.append(("stream", "true"))
        if language:
            fields.append(("language", language))
        if prompt:
            fields.append(("prompt", storable_text(prompt)))
        fields += (("timestamp_granularities[]", unit) for unit in sorted(times))
        patience_seconds = (
            len(recording.data) / _UPLOAD_BYTES_PER_SECOND
            + recording.duration_seconds * _SLOWEST_TRANSCRIBER
        )
        form = _form(recording, fields)
        with await self._client.post(
            "audio/transcriptions",
            form,
            setting=_STT_SETTING,
            extra_first_byte_seconds=patience_seconds,
        ) as answer:
            return await _read_answer(answer, on_words, self._client.names(_STT_SETTING))


class OpenAISpeaker:
    """Fulfils `Speaker` through `/audio/speech`; every voice name is passed on."""

    def __init__(
        self, client: ProviderClient, model: str, decoder: SpeechDecoder | None = None
    ) -> None:
        """`decoder` is for a server that sends MP3 or Ogg instead; without it such is refused."""
        self._client = client
        self._model = model
        self._decoder = decoder

    @property
    def sample_rate_hz(self) -> int:
        """OpenAI's `pcm` is 24 kHz."""
        return SAMPLE_RATE_HZ

    @property
    def max_characters(self) -> int:
        """OpenAI's limit."""
        return MAX_CHARACTERS

    @property
    def voices(self) -> frozenset[str] | None:
        """OpenAI's voices; other servers have voices of their own, which nobody knows here."""
        return OPENAI_VOICES if self._client.is_openai else None

    @property
    def has_speeds(self) -> bool:
        """As OpenAI's API has them."""
        return True

    async def speak(
        self,
        text: str,
        *,
        voice: str,
        speed: float = 1,
        is_urgent: bool = True,  # noqa: ARG002
    ) -> AsyncGenerator[bytes]:
        """Fulfil `Speaker.speak`."""
        fields = {"model": self._model, "voice": voice, "input": storable_text(text)}
        body = orjson.dumps(
            fields | {"response_format": "pcm"} | ({} if speed == 1 else {"speed": speed})
        )
        names = self._client.names(_TTS_SETTING)
        with await self._client.post("audio/speech", body, setting=_TTS_SETTING) as answer:
            pcm = PcmReader(text, names.model, _announced_samples(answer, names))
            try:
                while piece := await answer.read():
                    if samples := pcm.feed(piece):
                        yield samples
                if samples := pcm.end():
                    yield samples
            except CompressedSpeech as sent:
                if self._decoder is None:
                    raise
                compressed = sent
            else:
                return
            async with aclosing(self._decoder.decode(compressed, answer, pcm)) as decoded:
                async for samples in decoded:
                    yield samples


def _announced_samples(answer: ProviderResponse, names: SettingNames) -> SampleFormat:
    """Return what the provider says of its samples: 24 kHz, mono, where it says nothing.

    Raises where it says that it sends no samples, or such as cannot be converted. `audio/L16` is
    big-endian by RFC 2586 and little-endian by custom, so its other rates are refused.
    """
    if answer.media_type in _NO_SOUND:
        raise UpstreamIncomplete(
            f"The AI provider answered without sound; check {names.model} and {names.base_url}."
        )
    rate, channels = answer.media_parameter("rate"), answer.media_parameter("channels")
    if answer.media_type in _CONVERTIBLE:
        announced = SampleFormat(_number(rate, SAMPLE_RATE_HZ), _number(channels, 1), 16)
        if announced.is_usual:
            return announced
    for name, sent, expected in (
        ("samples a second", rate, str(SAMPLE_RATE_HZ)),
        ("channels", channels, "1"),
    ):
        if sent and sent != expected and sent.isdecimal():
            raise UpstreamIncomplete(
                f"The AI provider sent {sent[:9]} {name} where {expected} were asked for; check "
                f"{names.model}."
            )
    return PLAIN


def _number(sent: str | None, default: int) -> int:
    digits = (sent or "")[:9]
    return int(digits) if digits.isascii() and digits.isdecimal() else default


def _form(recording: Recording, fields: Sequence[tuple[str, str]]) -> Upload:
    """Return the recording and `fields` as multipart/form-data (RFC 7578)."""
    boundary = secrets.token_hex(16)
    disposition = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = [f'{disposition}"{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    head.append(
        f'{disposition}"file"; filename="audio.{recording.format}"\r\n'
        f"Content-Type: {_CONTENT_TYPES[recording.format]}\r\n\r\n"
    )
    return Upload(
        f"multipart/form-data; boundary={boundary}",
        ("".join(head).encode(), recording.data, f"\r\n--{boundary}--\r\n".encode()),
    )


async def _read_answer(
    answer: ProviderResponse, on_words: OnWords | None, names: SettingNames
) -> Transcript:
    """Read events up to the last, or JSON: the first bytes tell, for labels are often wrong."""
    head: bytes = b""
    while piece := await answer.read():
        head += piece
        if head.strip(_BLANK) or len(head) > _MAX_TRANSCRIPT_BYTES:
            break
    if head.lstrip(_BLANK)[:1] in {b"", b"{", b"["}:
        body = head + await answer.read_all(_MAX_TRANSCRIPT_BYTES)
        return _read_transcript(parse_json(body.strip(_BLANK)), names)
    if head.lstrip(_BLANK).startswith(b"<"):
        raise UpstreamIncomplete(
            f"The AI provider answered with a web page; check {names.base_url}."
        )
    return await _read_stream(head, answer, on_words, names)


async def _read_stream(
    head: bytes, answer: ProviderResponse, on_words: OnWords | None, names: SettingNames
) -> Transcript:
    """Read `transcript.text.delta` events up to `transcript.text.done`."""
    reader = EventReader()
    joiner = SurrogateJoiner()
    read_bytes = 0
    piece = head
    while not reader.overflowed and read_bytes <= _MAX_TRANSCRIPT_BYTES:
        read_bytes += len(piece)
        for data in reader.feed(piece) if piece else reader.end():
            event = _read_event(data)
            kind = event.get("type") or ""
            if kind == "transcript.text.delta":
                words = joiner.feed(str(event.get("delta") or ""))
                if words and on_words:
                    on_words(words)
            elif kind in {"transcript.text.done", "error"} or _is_transcript(event):
                return _read_transcript(event, names)
        if not piece:
            break
        piece = await answer.read()
    raise UpstreamIncomplete("The AI provider's transcript broke off.")


def _read_event(data: bytes) -> dict[str, Any]:
    """Return an event's fields; none where it keeps the connection alive."""
    if not data or data.isspace() or data == b"[DONE]":
        return {}
    event = parse_json(data)
    return cast("dict[str, Any]", event) if isinstance(event, dict) else {}


def _is_transcript(event: dict[str, Any]) -> bool:
    return not event.get("type") and ("text" in event or "error" in event)


def _read_transcript(value: Any, names: SettingNames) -> Transcript:  # noqa: ANN401  # JSON
    try:
        if error := value.get("error"):
            raise failure_of_error(error, names=names)
        language = str(value.get("language") or "").lower().partition("-")[0]
        return Transcript(
            text=storable_text(value["text"]).strip(),
            language=language if _is_iso_639_1(language) else None,
            segments=_timed(value.get("segments"), "text"),
            words=_timed(value.get("words"), "word"),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UpstreamIncomplete("The AI provider's transcript has no text.") from None


def _timed(pieces: list[dict[str, Any]] | None, text_field: str) -> tuple[TimedText, ...]:
    """Return pieces with their times, as `verbose_json` has them."""
    return tuple(
        TimedText(
            storable_text(str(piece[text_field])).strip(),
            max(0.0, float(piece["start"])),
            max(0.0, float(piece["end"])),
        )
        for piece in pieces or ()
    )


def _is_iso_639_1(language: str) -> bool:
    return len(language) == _ISO_639_1_LENGTH and language.isascii() and language.isalpha()

"""The forms of a transcript: JSON, and subtitles as SubRip and WebVTT have them. Pure."""

from collections.abc import Sequence
from typing import Any

from app.services.ports import Transcript
from app.services.transcript_times import TimedText
from app.services.voice.audio_requests import MadeTranscript


def usage_fields(duration_seconds: float) -> dict[str, Any]:
    """Return what a transcript used, as OpenAI tells it of models that are paid by time."""
    return {"type": "duration", "seconds": round(duration_seconds, 2)}


def short_form(made: MadeTranscript) -> dict[str, Any]:
    """Return `json`."""
    return {"text": made.transcript.text, "usage": usage_fields(made.duration_seconds)}


def verbose_form(
    made: MadeTranscript, language: str | None, *, has_segments: bool, has_words: bool
) -> dict[str, Any]:
    """Return `verbose_json`; what nobody here measures of a segment is 0, since SDKs want it."""
    transcript = made.transcript
    form: dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language or language or "",
        "duration": round(made.duration_seconds, 2),
        "text": transcript.text,
    }
    if has_segments:
        form["segments"] = [
            {
                "id": number,
                "seek": 0,
                "start": segment.start_seconds,
                "end": segment.end_seconds,
                "text": segment.text,
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": 0.0,
                "compression_ratio": 0.0,
                "no_speech_prob": 0.0,
            }
            for number, segment in enumerate(transcript.segments)
        ]
    if has_words:
        form["words"] = [
            {"word": word.text, "start": word.start_seconds, "end": word.end_seconds}
            for word in transcript.words
        ]
    return form | {"usage": usage_fields(made.duration_seconds)}


def srt(transcript: Transcript) -> str:
    """Return subtitles of SubRip."""
    return "".join(
        f"{number}\n{_span(segment, ',')}\n{_line(segment.text)}\n\n"
        for number, segment in enumerate(_shown(transcript), start=1)
    )


def vtt(transcript: Transcript) -> str:
    """Return subtitles of WebVTT (W3C)."""
    cues = (f"{_span(cue, '.')}\n{_escaped(_line(cue.text))}\n\n" for cue in _shown(transcript))
    return "WEBVTT\n\n" + "".join(cues)


def _shown(transcript: Transcript) -> Sequence[TimedText]:
    return [segment for segment in transcript.segments if segment.text]


def _line(text: str) -> str:
    """Return a text as one line: an empty one would end the subtitle."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _span(segment: TimedText, mark: str) -> str:
    return f"{_time(segment.start_seconds, mark)} --> {_time(segment.end_seconds, mark)}"


def _time(seconds: float, mark: str) -> str:
    total_ms = round(seconds * 1000)
    minutes, ms = divmod(total_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, ms = divmod(ms, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{mark}{ms:03}"

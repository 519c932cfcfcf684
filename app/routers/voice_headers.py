"""The headers of a spoken answer."""

import re
from urllib.parse import quote

from app.services.voice import VoiceAnswer

_TRANSCRIPTION_BYTES = 2048
_NOT_PLAIN = re.compile(r"[^\x20-\x24\x26-\x7e]+")


def voice_headers(answer: VoiceAnswer) -> dict[str, str]:
    """Return what the client is told before the sound: what was heard, and where it is stored."""
    transcription, truncated = encode_transcription(answer.transcript.text)
    timings = ", ".join(
        f"{name.removesuffix('_ms')};dur={ms}" for name, ms in answer.timings.items()
    )
    headers = {
        "X-Transcription": transcription,
        "X-Turn-Id": str(answer.turn_id),
        "X-Session-Id": str(answer.session_id),
        "Server-Timing": timings,
        "Cache-Control": "no-store",
    }
    return headers | ({"X-Transcription-Truncated": "true"} if truncated else {})


def encode_transcription(text: str) -> tuple[str, bool]:
    """Percent-encode as UTF-8 what is not printable ASCII, and `%`; tell whether it was cut.

    Plain English stays as it is, and `decodeURIComponent` reads the rest. A cut never divides
    a character.
    """
    encoded = _NOT_PLAIN.sub(lambda found: quote(found.group(), safe=""), text.strip())
    if len(encoded) <= _TRANSCRIPTION_BYTES:
        return encoded, False
    kept: list[str] = []
    room = _TRANSCRIPTION_BYTES
    for character in text.strip():
        piece = _NOT_PLAIN.sub(lambda found: quote(found.group(), safe=""), character)
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept), True

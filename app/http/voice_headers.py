"""The response headers of a voice turn."""

import re
from urllib.parse import quote

from app.models import Modality, TurnStatus
from app.services.voice import VoiceAnswer

_TRANSCRIPTION_BYTES = 2048
_NOT_PLAIN = re.compile(r"[^\x20-\x24\x26-\x7e]+")


def voice_headers(answer: VoiceAnswer) -> dict[str, str]:
    """Return the headers of a voice answer: transcription, ids of turn and session, timings.

    The answer to a written message has no transcription.
    """
    timings = ", ".join(
        f"{name.removesuffix('_ms')};dur={ms}" for name, ms in answer.timings.items()
    )
    headers = {
        "X-Turn-Id": str(answer.turn_id),
        "X-Session-Id": str(answer.session_id),
        "Server-Timing": timings,
        "Cache-Control": "no-store",
    }
    if answer.turn.required_actions():
        headers["X-Turn-Status"] = TurnStatus.REQUIRES_ACTION.value
    if answer.turn.record.modality is Modality.TEXT:
        return headers
    transcription, truncated = encode_transcription(answer.transcript.text)
    headers["X-Transcription"] = transcription
    return headers | ({"X-Transcription-Truncated": "true"} if truncated else {})


def encode_transcription(text: str) -> tuple[str, bool]:
    """Encode a transcription for a header; return it and whether it was truncated to 2,048 bytes.

    Characters that are not printable ASCII, and `%`, are percent-encoded as UTF-8, so that English
    stays readable and `decodeURIComponent` decodes everything. Truncation splits no character.
    """
    encoded = _percent_encode(text.strip())
    if len(encoded) <= _TRANSCRIPTION_BYTES:
        return encoded, False
    pieces: list[str] = []
    remaining_bytes = _TRANSCRIPTION_BYTES
    for character in text.strip():
        piece = _percent_encode(character)
        remaining_bytes -= len(piece)
        if remaining_bytes < 0:
            break
        pieces.append(piece)
    return "".join(pieces), True


def _percent_encode(text: str) -> str:
    return _NOT_PLAIN.sub(lambda match: quote(match.group(), safe=""), text)

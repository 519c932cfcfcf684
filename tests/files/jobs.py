"""Jobs of a worker whose reader was taken over by a document."""

from typing import Any

from app.services.files.limits import TEXT_BYTES


def lie(_fields: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return what no document is."""
    match data:
        case b"no text":
            return {"media_type": "text/plain"}, b""
        case b"wrong type":
            return {"media_type": "text/html; x"}, b"x"
        case _:
            return {"media_type": "text/plain"}, b"x" * (TEXT_BYTES + 1)

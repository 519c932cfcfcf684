"""What a process does with a job: find its function, run it, and answer over a pipe."""

import os
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from app.services.sandbox.frames import HEAD, Fields, decode_fields, decode_head, encode_frame

PIECE_BYTES = 1 << 20
_LONGEST_REPORT = 4000


def output_of(fields: Fields, payload: bytes) -> bytes:
    """Run a job; return its answer as a frame, or what went wrong in it."""
    try:
        return encode_frame(*function_named(fields["function"])(fields["fields"], payload))
    except MemoryError:
        return encode_frame({"job_error": "it needs too much memory"})
    except Exception:  # noqa: BLE001  # what a foreign file causes must not end the process
        return encode_frame({"job_error": traceback.format_exc()[-_LONGEST_REPORT:]})


def function_named(name: str) -> Callable[..., Any]:
    """Return the function `module:function`."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def read_frame(source: int) -> tuple[Fields, bytes] | None:
    """Read one frame, blocking; `None` at the end of the pipe, even inside a frame."""
    head = _read_exactly(source, HEAD.size)
    if head is None:
        return None
    json_bytes, payload_bytes = decode_head(head)
    text = _read_exactly(source, json_bytes)
    payload = _read_exactly(source, payload_bytes)
    if text is None or payload is None:
        return None
    return decode_fields(text), payload


def _read_exactly(source: int, count: int) -> bytes | None:
    pieces: list[bytes] = []
    missing = count
    while missing:
        piece = os.read(source, min(missing, PIECE_BYTES))
        if not piece:
            return None
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_all(target: int, data: bytes) -> None:
    """Write all of `data`, blocking."""
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]

"""JSON and text from a provider, neither of which is to be trusted."""

import json
import re
from typing import Any

import orjson

from app.core.storable_text import storable_text
from app.services.ports import UpstreamIncomplete

_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(payload: bytes) -> Any:  # noqa: ANN401  # JSON has no narrower type
    r"""Read one JSON value; raises `UpstreamIncomplete` where it is none.

    Lone surrogates (`\ud800`) and bytes that are not UTF-8 do not break it: `storable_text` makes
    U+FFFD of the former, this function of the latter.
    """
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(payload.decode(errors="replace"))
    except (ValueError, RecursionError):
        raise UpstreamIncomplete("The AI provider sent JSON that cannot be read.") from None


class SurrogateJoiner:
    r"""Joins characters that a provider cut in halves: `\ud83d` in one chunk, `\ude00` in the next.

    Knows nothing of chunks; everything else is as `storable_text` makes it.
    """

    __slots__ = ("_half", "is_empty")

    def __init__(self) -> None:
        self._half = ""
        self.is_empty = True
        """True while no half is held back."""

    def feed(self, text: str) -> str:
        """Take the next text and return what is whole of it and of what was held back."""
        if not self._half and text.isascii():
            return storable_text(text)
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
        self.is_empty = not self._half
        whole = text[:-1] if self._half else text
        if _SURROGATE.search(whole):
            whole = whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return storable_text(whole)

    def end(self) -> str:
        """Return what was held back, which nothing will complete."""
        half, self._half = self._half, ""
        self.is_empty = True
        return "\ufffd" if half else ""

"""JSON and text from a provider, neither of which is to be trusted."""

import json
import re
from typing import Any

import orjson

from app.services.ports import UpstreamIncomplete

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def parse_json(payload: bytes) -> Any:  # noqa: ANN401  # JSON has no narrower type
    r"""Read one JSON value; raises `UpstreamIncomplete` where it is none.

    Lone surrogates (`\ud800`) and bytes that are not UTF-8 do not break it: `clean` makes
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


def clean(text: str) -> str:
    """Replace what no database stores, NUL and lone surrogates, by U+FFFD."""
    if text.isascii() and "\x00" not in text:
        return text
    return _UNSTORABLE.sub("\ufffd", text)

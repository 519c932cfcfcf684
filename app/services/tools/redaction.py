"""Replaces secrets in what a tool answers: a server may echo what it was sent."""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, quote_plus

_SHORTEST_FORM = 6
"""Of a part of base64; shorter ones would also match by chance."""


class Redactor:
    """Replaces each of `secrets`, values by name, with `[secret NAME]`."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names = {
            form: name for name, value in secrets.items() if value for form in _forms(value)
        }
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def redact(self, text: str) -> str:
        """Return `text` without the secrets, plain, in base64, and escaped for URLs and JSON."""
        if not self._names:
            return text
        return self._pattern.sub(lambda match: f"[secret {self._names[match[0]]}]", text)


def _forms(value: str) -> Iterable[str]:
    """Return the texts that stand for `value`, alone or within something longer."""
    escaped = quote(value, safe="")
    yield from (value, escaped, escaped.lower(), quote_plus(value), quote(value))
    yield from (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    data = value.encode()
    for skipped in range(3):
        # The digits that depend on the neighbours are left out, at both ends.
        encoded = base64.b64encode(b"\0" * skipped + data).decode().rstrip("=")
        first = (skipped * 8 + 5) // 6
        last = (skipped + len(data)) * 8 // 6
        digits = encoded[first:last]
        if len(digits) >= _SHORTEST_FORM:
            yield digits
            yield digits.translate(_TO_URL)


_TO_URL = str.maketrans("+/", "-_")

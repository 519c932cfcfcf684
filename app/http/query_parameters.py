"""Refuse query parameters that an endpoint does not have, and say which name was meant."""

from collections.abc import Sequence
from urllib.parse import parse_qsl

from app.http.problems import RequestInvalid, invalid_request

_MOST_NAMES = 100


def require_known_parameters(query: str, known: Sequence[str]) -> None:
    """Raise `RequestInvalid` where the query has a parameter that is not `known`, or one twice."""
    if not query:
        return
    seen: set[str] = set()
    for name, _ in parse_qsl(query, keep_blank_values=True, max_num_fields=None)[:_MOST_NAMES]:
        if name not in known:
            raise _refusal(name, "extra_forbidden", known)
        if name in seen:
            raise _refusal(name, "repeated", known)
        seen.add(name)


def _refusal(name: str, kind: str, known: Sequence[str]) -> RequestInvalid:
    fault = {"type": kind, "loc": ("query", name), "msg": "is there more than once"}
    return invalid_request([fault], known)

"""Say which name a client meant that sent an unknown one."""

from collections.abc import Sequence
from urllib.parse import parse_qsl

from app.http.problems import RequestInvalid, invalid_request

_MOST_NAMES = 100


def require_known_parameters(query: str, known: Sequence[str]) -> None:
    """Raise `RequestInvalid` where the query string has a parameter that is not in `known`."""
    if not query:
        return
    for name, _ in parse_qsl(query, keep_blank_values=True, max_num_fields=None)[:_MOST_NAMES]:
        if name not in known:
            raise _unknown(name, known)


def _unknown(name: str, known: Sequence[str]) -> RequestInvalid:
    fault = {"type": "extra_forbidden", "loc": ("query", name), "msg": "unknown"}
    return invalid_request([fault], known)

"""The headers that OpenAI's clients read of every answer under `/v1`, errors and streams included.

Rates in OpenAI's form stand beside ours: what is left of the minute's requests, and of the day's
tokens.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from app.core.limits import Quota

_Headers = Sequence[tuple[bytes, bytes]]
_VERSION = (b"openai-version", b"2020-10-01")


def openai_headers(request_id: str) -> Callable[[], _Headers]:
    """Return what makes the headers of an answer in the moment in which it begins."""
    started_at = time.monotonic()
    request = (b"x-request-id", request_id.encode())

    def headers() -> _Headers:
        took_ms = round((time.monotonic() - started_at) * 1000)
        return request, _VERSION, (b"openai-processing-ms", b"%d" % took_ms)

    return headers


def rate_headers(quotas: Iterable[Quota | None]) -> list[tuple[bytes, bytes]]:
    """Return the headers of limits of requests and tokens."""
    now = time.time()
    headers: list[tuple[bytes, bytes]] = []
    for quota in quotas:
        if quota is None or quota.resource not in {"requests", "tokens"}:
            continue
        kind = quota.resource.encode()
        headers += (
            (b"x-ratelimit-limit-" + kind, quota.limit.encode()),
            (b"x-ratelimit-remaining-" + kind, quota.remaining.encode()),
            (b"x-ratelimit-reset-" + kind, duration(quota.reset_at - now).encode()),
        )
    return headers


def duration(seconds: float) -> str:
    """Return a time to wait as OpenAI writes it: `1s`, `6m0s`, `3h0m5s`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"

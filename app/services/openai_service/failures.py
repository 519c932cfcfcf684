"""What a provider's refusals mean in the words of `ports`.

Every sentence here is our own: a provider's words may hold keys, URLs and prompts.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import cast

from app.services.ports import (
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnauthorized,
    ProviderUnavailable,
    UpstreamIncomplete,
)

_LONGEST_RETRY_AFTER_SECONDS = 86_400.0

_WORDS: tuple[tuple[type[ProviderError], str, tuple[str, ...]], ...] = (
    (
        ProviderUnauthorized,
        "The AI provider's account has no credit left; see its billing page and OPENAI_API_KEY.",
        ("insufficient_quota", "billing"),
    ),
    (
        ProviderRateLimited,
        "The AI provider limits this server's requests.",
        ("rate_limit", "rate limit", "too_many_requests", "tokens_per_min"),
    ),
    (
        ProviderUnauthorized,
        "The AI provider refused the credentials; check OPENAI_API_KEY.",
        ("invalid_api_key", "authentication", "permission", "unauthorized"),
    ),
    (ProviderTimeout, "The AI provider ran out of time.", ("timeout", "timed_out")),
    (
        ProviderUnavailable,
        "The AI provider cannot serve now.",
        ("overloaded", "server_error", "internal_error", "unavailable", "session_expired"),
    ),
    (
        ProviderRejected,
        "The AI provider refused the request; check {setting}.",
        ("invalid_request", "invalid_value", "context_length", "not_found", "not_supported"),
    ),
)


def failure_of_status(
    status: int, headers: Mapping[str, str], body: bytes, *, setting: str
) -> ProviderError:
    """Make an error of an HTTP answer other than 2xx.

    `setting` names the environment variable that chose the model. `body` tells an empty
    account from a limited one.
    """
    failure, sentence = _meaning(status, body)
    retry_after_seconds = _retry_after_seconds(headers) if failure.retryable else None
    return failure(
        sentence.format(status=status, setting=setting), retry_after_seconds=retry_after_seconds
    )


def _meaning(status: int, body: bytes) -> tuple[type[ProviderError], str]:
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            failure = ProviderUnauthorized
            sentence = (
                "The AI provider refused the credentials (HTTP {status}); check OPENAI_API_KEY "
                "and whether it may use the model in {setting}."
            )
        case HTTPStatus.TOO_MANY_REQUESTS if b"insufficient_quota" in body:
            failure = ProviderUnauthorized
            sentence = (
                "The AI provider's account has no credit left (HTTP {status}); see its billing "
                "page and OPENAI_API_KEY."
            )
        case HTTPStatus.TOO_MANY_REQUESTS:
            failure = ProviderRateLimited
            sentence = "The AI provider limits this server's requests (HTTP {status})."
        case HTTPStatus.NOT_FOUND:
            failure = ProviderRejected
            sentence = (
                "The AI provider knows no such model or address (HTTP {status}); check {setting} "
                "and OPENAI_BASE_URL."
            )
        case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.CONFLICT:
            failure = ProviderUnavailable
            sentence = "The AI provider cannot serve now (HTTP {status})."
        case _ if status < HTTPStatus.BAD_REQUEST:
            failure = ProviderRejected
            sentence = (
                "The AI provider's address leads elsewhere (HTTP {status}); check OPENAI_BASE_URL."
            )
        case _ if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            failure = ProviderRejected
            sentence = "The AI provider refused the request (HTTP {status}); check {setting}."
        case _:
            failure = ProviderUnavailable
            sentence = "The AI provider cannot serve now (HTTP {status})."
    return failure, sentence


def failure_of_error(error: object, *, setting: str) -> ProviderError:
    """Make an error of an `error` object inside an answer that began with status 200."""
    fields = cast("dict[str, object]", error) if isinstance(error, dict) else {}
    words = f"{fields.get('type')} {fields.get('code')}".lower()
    for failure, sentence, signs in _WORDS:
        if any(sign in words for sign in signs):
            return failure(sentence.format(setting=setting))
    code = str(fields.get("code"))
    if re.fullmatch("[45][0-9][0-9]", code):  # some gateways put a status here
        return failure_of_status(int(code), {}, b"", setting=setting)
    return UpstreamIncomplete("The AI provider reported an error in the middle of its answer.")


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    try:
        if "retry-after-ms" in headers:
            return _bounded(float(headers["retry-after-ms"]) / 1000)
        if "Retry-After" not in headers:
            return None
    except ValueError:
        pass
    value = headers.get("Retry-After", "")
    try:
        return _bounded(float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return _bounded((date - datetime.now(UTC)).total_seconds())


def _bounded(seconds: float) -> float | None:
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)

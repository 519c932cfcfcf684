"""What a provider's refusals mean in the words of `ports`.

Every sentence here is our own: a provider's words may hold keys, URLs and prompts.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple, cast

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

_OPTIONAL_FIELDS = {
    field: re.compile(rb"\b%s\b" % field.encode())
    for field in ("stream_options", "max_tokens", "max_completion_tokens")
} | {
    "response_format": re.compile(
        rb"\bresponse[ _.-]?(?:format|mime|schema)|\bjson[ _-](?:schema|object|mode)"
        rb"|structured[ _-]?output|\bstrict\b",
        re.IGNORECASE,
    ),
}
_SCHEMA = re.compile(rb"invalid[ _](?:json[ _])?schema", re.IGNORECASE)
_UNKNOWN_FIELD = re.compile(
    rb"(?:unknown|unrecognized|unrecognised|unexpected|unsupported|extra|additional)[ _]"
    rb"(?:\w+[ _]){0,2}(?:field|param|propert|argument|input|key)",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(
    rb"insufficient[ _](?:quota|balance|credit|fund)|exceeded_current_quota"
    rb"|credit balance is too low|billing_hard_limit|billing_not_active",
    re.IGNORECASE,
)


class SettingNames(NamedTuple):
    """The environment variables that chose a model, its server and the key for it."""

    model: str
    base_url: str = "OPENAI_BASE_URL"
    api_key: str = "OPENAI_API_KEY"


class MissingWebSocket(Exception):
    """The server has no WebSocket there; `failure` says so where nothing else can be tried."""

    def __init__(self, failure: ProviderError) -> None:
        super().__init__(failure.detail)
        self.failure = failure


_WORDS: tuple[tuple[type[ProviderError], str, tuple[str, ...]], ...] = (
    (
        ProviderUnauthorized,
        "The AI provider's account has no credit left; see its billing page and {names.api_key}.",
        ("insufficient_quota", "billing", "insufficient_balance"),
    ),
    (
        ProviderRateLimited,
        "The AI provider limits this server's requests.",
        ("rate_limit", "rate limit", "too_many_requests", "tokens_per_min"),
    ),
    (
        ProviderUnauthorized,
        "The AI provider refused the credentials; check {names.api_key}.",
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
        "The AI provider refused the request; check {names.model}.",
        ("invalid_request", "invalid_value", "context_length", "not_found", "not_supported"),
    ),
)


def failure_of_status(
    status: int, headers: Mapping[str, str], body: bytes, *, names: SettingNames
) -> ProviderError:
    """Make an error of an HTTP answer other than 2xx.

    `body` tells an empty account from a limited one, and which field of the request was refused.
    """
    failure, sentence = _meaning(status, body)
    error = failure(
        sentence.format(status=status, names=names),
        retry_after_seconds=_retry_after_seconds(headers) if failure.retryable else None,
        is_outage=status >= HTTPStatus.INTERNAL_SERVER_ERROR,
        refused_fields=_refused_fields(status, body),
    )
    error.http_status = status
    return error


def _refused_fields(status: int, body: bytes) -> frozenset[str]:
    """Return the optional fields that a refusal names, or all where it speaks of an unnamed one.

    `schema` is among them where the schema of `response_format` is refused, and not the field.
    """
    named = frozenset(field for field, name in _OPTIONAL_FIELDS.items() if name.search(body))
    if "response_format" in named and _SCHEMA.search(body):
        return named | {"schema"}
    is_of_form = status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
    if named or not (is_of_form and _UNKNOWN_FIELD.search(body)):
        return named
    return frozenset(_OPTIONAL_FIELDS)


def _meaning(status: int, body: bytes) -> tuple[type[ProviderError], str]:
    has_no_credit = status == HTTPStatus.PAYMENT_REQUIRED or (
        status < HTTPStatus.INTERNAL_SERVER_ERROR and _NO_CREDIT.search(body)
    )
    match status:
        case _ if has_no_credit:
            failure = ProviderUnauthorized
            sentence = (
                "The AI provider's account has no credit left (HTTP {status}); see its billing "
                "page and {names.api_key}."
            )
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            failure = ProviderUnauthorized
            sentence = (
                "The AI provider refused the credentials (HTTP {status}); check {names.api_key} "
                "and whether it may use the model in {names.model}."
            )
        case HTTPStatus.TOO_MANY_REQUESTS:
            failure = ProviderRateLimited
            sentence = "The AI provider limits this server's requests (HTTP {status})."
        case HTTPStatus.NOT_FOUND:
            failure = ProviderRejected
            sentence = (
                "The AI provider knows no such model or address (HTTP {status}); check "
                "{names.model} and {names.base_url}."
            )
        case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.CONFLICT:
            failure = ProviderUnavailable
            sentence = "The AI provider cannot serve now (HTTP {status})."
        case HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            failure = ProviderUnavailable
            sentence = "The proxy to the AI provider wants credentials (HTTP {status})."
        case _ if status < HTTPStatus.BAD_REQUEST:
            failure = ProviderRejected
            sentence = (
                "The AI provider's address leads elsewhere (HTTP {status}); check {names.base_url}."
            )
        case _ if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            failure = ProviderRejected
            sentence = "The AI provider refused the request (HTTP {status}); check {names.model}."
        case _:
            failure = ProviderUnavailable
            sentence = "The AI provider cannot serve now (HTTP {status})."
    return failure, sentence


def failure_of_error(error: object, *, names: SettingNames) -> ProviderError:
    """Make an error of an `error` object inside an answer that began with status 200."""
    fields = cast("dict[str, object]", error) if isinstance(error, dict) else {}
    words = f"{fields.get('type')} {fields.get('code')}".lower()
    for failure, sentence, signs in _WORDS:
        if any(sign in words for sign in signs):
            return failure(sentence.format(names=names))
    code = str(fields.get("code"))
    if re.fullmatch("[45][0-9][0-9]", code):  # some gateways put a status here
        failure, sentence = _meaning(int(code), b"")
        return failure(sentence.format(status=code, names=names))  # no outage: it answered
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

"""Turns errors into RFC 9457 problem documents (`application/problem+json`)."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app.core.errors import AppError, ErrorKind
from app.core.limits import Quota
from app.core.request_context import current_context
from app.schemas.base import UNION_TAGS
from app.schemas.problems import Problem

PROBLEM_TYPE = "application/problem+json"

_STATUS = {
    ErrorKind.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorKind.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorKind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorKind.GONE: HTTPStatus.GONE,
    ErrorKind.NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    ErrorKind.CONFLICT: HTTPStatus.CONFLICT,
    ErrorKind.CHANGED: HTTPStatus.PRECONDITION_FAILED,
    ErrorKind.MALFORMED: HTTPStatus.BAD_REQUEST,
    ErrorKind.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorKind.TOO_SLOW: HTTPStatus.REQUEST_TIMEOUT,
    ErrorKind.UNSUPPORTED: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ErrorKind.OUT_OF_RANGE: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    ErrorKind.INVALID: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorKind.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorKind.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorKind.UPSTREAM: HTTPStatus.BAD_GATEWAY,
    ErrorKind.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorKind.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
}
_TEMPORARY = {ErrorKind.TOO_MANY, ErrorKind.UNAVAILABLE}
"""Answered with `Retry-After`, also when a stored turn's error is replayed."""
_LONGEST_KEY = 64


class RouteNotFound(AppError):
    """There is no resource at this path."""

    kind = ErrorKind.NOT_FOUND
    code = "not-found"


class MethodNotAllowed(AppError):
    """The path does not support this method."""

    kind = ErrorKind.NOT_ALLOWED
    code = "method-not-allowed"


class MalformedBody(AppError):
    """The body cannot be read."""

    kind = ErrorKind.MALFORMED
    code = "malformed-body"


class BodyTooLarge(AppError):
    """The body is too large."""

    kind = ErrorKind.TOO_LARGE
    code = "body-too-large"


class RequestTimeout(AppError):
    """The body came too slowly."""

    kind = ErrorKind.TOO_SLOW
    code = "request-timeout"


class UnsupportedMediaType(AppError):
    """The body has the wrong content type."""

    kind = ErrorKind.UNSUPPORTED
    code = "unsupported-media-type"


class RangeNotSatisfiable(AppError):
    """The requested range does not exist."""

    kind = ErrorKind.OUT_OF_RANGE
    code = "range-not-satisfiable"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"The audio has {size_bytes} bytes: request a range within them.")
        self.size_bytes = size_bytes


class RequestInvalid(AppError):
    """The request is not valid."""

    kind = ErrorKind.INVALID
    code = "request-invalid"


_RESOURCE = b"x-ratelimit-resource"

PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "A problem document"},
    "5XX": {"model": Problem, "description": "A problem document"},
}


def install_problem_handlers(app: FastAPI) -> None:
    """Register handlers that turn every error of `app` into a problem document."""
    app.exception_handler(AppError)(_app_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)


def status_of(error: AppError) -> int:
    """Return the HTTP status of an error."""
    return _STATUS[error.kind].value


def problem_response(error: AppError, request_id: str) -> Response:
    """Return `error` as a problem document, and note it for the request's line in the log."""
    if context := current_context():
        context.problem = error
    status = _STATUS[error.kind]
    body: dict[str, Any] = {
        "type": f"/errors/{error.code}",
        "title": error.title(),
        "status": status.value,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    headers: dict[str, str] = {}
    wait_seconds = error.retry_after_seconds
    if error.kind is ErrorKind.CONFLICT or error.has_effects:
        headers["x-should-retry"] = "false"  # OpenAI's SDKs retry 409 and 5xx by default
    elif wait_seconds is not None or error.kind in _TEMPORARY:
        headers["Retry-After"] = str(max(1, math.ceil(wait_seconds or 0)))
    if error.kind is ErrorKind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if error.quota:
        headers |= {name.decode(): value.decode() for name, value in quota_headers(error.quota)}
    return Response(
        orjson.dumps(body | error.extensions),
        status_code=status.value,
        media_type=PROBLEM_TYPE,
        headers=headers,
    )


def quota_headers(quota: Quota) -> tuple[tuple[bytes, bytes], ...]:
    """Return the `X-RateLimit-*` headers of a quota, with GitHub's names."""
    return (
        (b"x-ratelimit-limit", quota.limit.encode()),
        (b"x-ratelimit-remaining", quota.remaining.encode()),
        (b"x-ratelimit-reset", b"%d" % quota.reset_at),
        (_RESOURCE, quota.resource.encode()),
    )


def add_quota_headers(
    headers: Iterable[tuple[bytes, bytes]], quota: Quota
) -> list[tuple[bytes, bytes]]:
    """Add the quota to a response's headers, unless they report a reached limit already."""
    all_headers = list(headers)
    for name, _ in all_headers:
        if name == _RESOURCE:
            return all_headers
    return [*all_headers, *quota_headers(quota)]


async def _app_error(request: Request, error: AppError) -> Response:
    return problem_response(error, request.state.request_id)


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "json_invalid":
            return problem_response(invalid_json(fault["loc"][-1]), request.state.request_id)
    known = getattr(request.state, "known_fields", ())
    return problem_response(invalid_request(faults, known), request.state.request_id)


def invalid_json(position: int) -> MalformedBody:
    """Return the error of a body that is no JSON from character `position` on."""
    return MalformedBody(f"The body is not valid JSON, near character {position}.")


def invalid_request(faults: Sequence[Any], known: Sequence[str] = ()) -> RequestInvalid:
    """Return the error of a request with these faults, which are pydantic's error details.

    `known` are the names that the body, or the query, may have.
    """
    fields = [_field(fault, known) for fault in faults]
    more = len(fields) - 1
    others = f" ({more} more: see `errors`)" if more else ""
    # An unknown name is often why another is missing.
    first = next((field for field in fields if field["type"] == "extra_forbidden"), fields[0])
    error = RequestInvalid(f"{_sentence(first)}{others}")
    error.extensions["errors"] = fields
    return error


def _sentence(field: dict[str, Any]) -> str:
    place, *path = field["loc"] or ["body"]
    name = ".".join(map(str, path))
    if not name:
        return f"The {place}: {field['msg']}."
    kind = "The query parameter " if place == "query" else ""
    return f"{kind}`{name}`: {field['msg']}."


def _field(fault: Any, known: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401  # a dict of pydantic
    # Unknown names come from the client, so they are truncated; values are never included.
    location = [
        part if isinstance(part, int) else str(part)[:_LONGEST_KEY]
        for part in fault["loc"]
        if part not in UNION_TAGS
    ]
    message = fault["msg"].removeprefix("Value error, ").removesuffix(".")
    match fault["type"]:
        case "extra_forbidden":
            message = _unknown(str(location[-1]), known if len(location) == _TOP_LEVEL else ())
        case "string_pattern_mismatch":
            message = "is not of the form that is documented"
        case "too_long" | "too_short" if (
            fault.get("ctx", {}).get("field_type") == "Value"
        ):  # a text
            bound = "max_length" if fault["type"] == "too_long" else "min_length"
            least = "most" if fault["type"] == "too_long" else "least"
            message = f"must have at {least} {fault['ctx'][bound]} characters"
        case kind:
            message = _MESSAGES.get(kind, message)
    return {"loc": location, "msg": message, "type": fault["type"]}


_TOP_LEVEL = 2
_MESSAGES = {
    "missing": "is missing",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a list",
    "uuid_type": "must be a UUID, as text",
}
"""Where pydantic's words name types of Python."""
_MEANT = {
    "instructions": "`system_prompt`",
    "system": "`system_prompt`",
    "prompt": "`system_prompt`",
    "stream": "the header `Accept: text/event-stream`",
    "max_tokens": "`max_output_tokens`",
    "max_completion_tokens": "`max_output_tokens`",
    "text": "`content`",
    "message": "`content`",
    "input": "`content`",
    "assistant_id": "`agent_id`",
    "thread_id": "`session_id`",
    "conversation_id": "`session_id`",
    "user": "`user_id`",
    "search": "`q`",
    "query": "`q`",
    "after": "`cursor`",
    "page": "`cursor`",
    "offset": "`cursor`",
    "since": "`from`",
    "until": "`to`",
}
"""What names of other APIs are called here."""


def _unknown(name: str, known: Sequence[str]) -> str:
    """Say that a field is unknown, and which one is likely meant."""
    meant = _MEANT.get(name.lower())
    near = get_close_matches(name.lower(), known, n=1)
    if meant and (meant.strip("`") in known or (" " in meant and "content" in known)):
        return f"is not known here; use {meant}"
    if near:
        return f"is not known here; did you mean `{near[0]}`"
    names = ", ".join(f"`{each}`" for each in known)
    return f"is not known here; there are {names}" if names else "is not known here"


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = problem_response(_from_http(request, error), request.state.request_id)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of every route with the request's path."""
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _from_http(request: Request, error: HTTPException) -> AppError:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return RouteNotFound("Check the path: /docs lists every path of this server.")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowed(
                f"This path does not support {request.method}: use a method of the Allow header."
            )
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return BodyTooLarge("The body is larger than this path accepts.")
        case HTTPStatus.REQUEST_TIMEOUT:
            return RequestTimeout(
                "The body was not received in time, and nothing was stored: send the request again."
            )
        case _:
            return MalformedBody("The body is incomplete, or does not match its content type.")

"""Errors as RFC 9457 problem documents (`application/problem+json`)."""

import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.core.errors import AppError, ErrorKind
from app.core.limits import Quota
from app.schemas.problems import Problem

PROBLEM_TYPE = "application/problem+json"

_STATUS = {
    ErrorKind.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    ErrorKind.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorKind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorKind.NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    ErrorKind.CONFLICT: HTTPStatus.CONFLICT,
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
"""Always answered with `Retry-After`, also where a stored turn's error is told again."""
_LONGEST_KEY = 64


class RouteNotFound(AppError):
    """There is nothing at this path."""

    kind = ErrorKind.NOT_FOUND
    code = "not-found"


class MethodNotAllowed(AppError):
    """The path does not take this method."""

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
    """There is no such range."""

    kind = ErrorKind.OUT_OF_RANGE
    code = "range-not-satisfiable"

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"The sound has {size_bytes} bytes.")
        self.size_bytes = size_bytes


class RequestInvalid(AppError):
    """The request is not valid."""

    kind = ErrorKind.INVALID
    code = "request-invalid"


_RESOURCE = b"x-ratelimit-resource"

PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "A problem document", "content": {PROBLEM_TYPE: {}}},
    "5XX": {"model": Problem, "description": "A problem document", "content": {PROBLEM_TYPE: {}}},
}


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.exception_handler(AppError)(_app_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)


def problem_response(
    error: AppError, request_id: str, errors: list[dict[str, Any]] | None = None
) -> Response:
    """Write `error` as a problem document."""
    status = _STATUS[error.kind]
    body: dict[str, Any] = {
        "type": f"/errors/{error.code}",
        "title": error.title(),
        "status": status.value,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if errors is not None:
        body["errors"] = errors
    headers: dict[str, str] = {}
    wait_seconds = error.retry_after_seconds
    if wait_seconds is not None or error.kind in _TEMPORARY:
        headers["Retry-After"] = str(max(1, math.ceil(wait_seconds or 0)))
    if error.kind is ErrorKind.CONFLICT:
        headers["x-should-retry"] = "false"  # OpenAI's SDKs would retry a 409 by themselves
    if error.kind is ErrorKind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if error.quota:
        headers |= {name.decode(): told.decode() for name, told in quota_headers(error.quota)}
    return Response(
        orjson.dumps(body | error.facts),
        status_code=status.value,
        media_type=PROBLEM_TYPE,
        headers=headers,
    )


def quota_headers(quota: Quota) -> tuple[tuple[bytes, bytes], ...]:
    """Write how a caller stands, as GitHub does."""
    return (
        (b"x-ratelimit-limit", quota.limit.encode()),
        (b"x-ratelimit-remaining", quota.remaining.encode()),
        (b"x-ratelimit-reset", b"%d" % quota.reset_at),
        (_RESOURCE, quota.resource.encode()),
    )


def with_quota(headers: Iterable[tuple[bytes, bytes]], quota: Quota) -> list[tuple[bytes, bytes]]:
    """Add how a caller stands, unless the response speaks of a limit that was reached."""
    told = list(headers)
    for name, _ in told:
        if name == _RESOURCE:
            return told
    return [*told, *quota_headers(quota)]


async def _app_error(request: Request, error: AppError) -> Response:
    return problem_response(error, request.state.request_id)


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    faults = error.errors()
    for fault in faults:
        if fault["type"] == "json_invalid":
            place = fault["loc"][-1]
            malformed = MalformedBody(f"The body is not valid JSON, near character {place}.")
            return problem_response(malformed, request.state.request_id)
    detail = RequestInvalid("Some fields are not valid: see `errors`.")
    return problem_response(detail, request.state.request_id, [_field(fault) for fault in faults])


def _field(fault: Any) -> dict[str, Any]:  # noqa: ANN401  # pydantic's own shape
    # Names come from the client where they are unknown: cut, and never the value.
    location = [
        part if isinstance(part, int) else str(part)[:_LONGEST_KEY] for part in fault["loc"]
    ]
    message = fault["msg"].removeprefix("Value error, ")
    return {"loc": location, "msg": message, "type": fault["type"]}


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = problem_response(_from_http(request, error), request.state.request_id)
    if error.headers and "allow" in {name.lower() for name in error.headers}:
        response.headers.update(error.headers)
    return response


def _from_http(request: Request, error: HTTPException) -> AppError:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return RouteNotFound("See /docs for the paths there are.")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return MethodNotAllowed(f"{request.method} is not possible here; see the Allow header.")
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return BodyTooLarge("The body is larger than this path takes.")
        case HTTPStatus.REQUEST_TIMEOUT:
            return RequestTimeout("The body did not come in time; nothing was stored.")
        case _:
            return MalformedBody("The body is not what its content type says, or broke off.")

"""What can go wrong: problem documents as exceptions, turns that failed, lost connections."""

import json
from collections.abc import Mapping
from typing import Any, cast

from agent_platform_client.types import FieldProblem


class AgentPlatformError(Exception):
    """Base of every error of this package."""


class ConnectionLost(AgentPlatformError):
    """The server could not be reached for as long as requests are repeated (`retry_seconds`).

    The request may have been carried out: send it again with the same idempotency key, or look.
    """


class TurnFailed(AgentPlatformError):
    """The turn was accepted and failed; its user message is stored."""

    def __init__(self, turn_id: str, code: str, detail: str, *, is_retryable: bool) -> None:
        super().__init__(f"{code}: {detail}")
        self.turn_id = turn_id
        self.code = code
        self.detail = detail
        self.is_retryable = is_retryable
        """True if the same message may succeed when it is sent again with the same key."""


class ApiError(AgentPlatformError):
    """The server refused the request with a problem document (RFC 9457)."""

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after_seconds: float | None
    ) -> None:
        self.status = status
        self.code: str = problem.get("code") or "http-error"
        """Stable; docs/errors.md of the server lists all of them."""
        self.detail: str = problem.get("detail") or f"The server answered {status}."
        self.request_id: str | None = problem.get("request_id")
        self.turn_id: str | None = problem.get("turn_id")
        self.errors: list[FieldProblem] = problem.get("errors") or []
        self.retry_after_seconds = retry_after_seconds
        self.problem = dict(problem)
        super().__init__(f"{status} {self.code}: {self.detail}")


class AuthenticationFailed(ApiError):
    """401: the key or token is missing, wrong, expired or revoked."""


class PermissionDenied(ApiError):
    """403: the key lacks a scope."""


class NotFound(ApiError):
    """404 or 410: there is no such thing for this key."""


class Conflict(ApiError):
    """409: the session is busy, or the agent archived."""


class InvalidRequest(ApiError):
    """400, 413, 415, 422: the request is wrong and would be wrong again."""


class RateLimited(ApiError):
    """429: a limit of the key is reached, for longer than requests are repeated."""


class ServerUnavailable(ApiError):
    """503: the server is full, draining or without its database, for longer than is waited."""


class ServerFailed(ApiError):
    """500, 502, 504: the server or its provider failed."""


_CLASSES: dict[int, type[ApiError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    410: NotFound,
    429: RateLimited,
    503: ServerUnavailable,
}
_FIRST_SERVER_ERROR = 500


def parse_problem(body: bytes) -> dict[str, Any] | None:
    """Return a problem document; `None` for anything else, such as a proxy's page."""
    try:
        problem: object = json.loads(body)
    except ValueError:
        return None
    if not isinstance(problem, dict) or "code" not in problem:
        return None
    return cast("dict[str, Any]", problem)


def api_error(status: int, body: bytes, retry_after_seconds: float | None) -> ApiError:
    """Return the exception of a response of status 400 or more."""
    default = ServerFailed if status >= _FIRST_SERVER_ERROR else InvalidRequest
    kind = _CLASSES.get(status, default)
    return kind(status, parse_problem(body) or {}, retry_after_seconds)

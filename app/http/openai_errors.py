"""Errors under `/v1` in the shape of OpenAI's API, and the headers that its SDKs look for.

Everything that answers a request of this server answers an error as a problem document, also what
never reaches an endpoint. This middleware writes those of `/v1` anew.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import AppError, ErrorKind
from app.http.openai_headers import openai_headers
from app.http.problem_rewriter import ProblemRewriter, RewrittenError
from app.http.problems import status_of

PREFIX = "/v1/"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODES = {
    "unauthenticated": "invalid_api_key",
    "not-found": "unknown_url",
    "agent-not-found": "model_not_found",
    "agent-archived": "model_not_found",
    "message-too-long": "context_length_exceeded",
    "rate-limited": "rate_limit_exceeded",
    "budget-exhausted": "insufficient_quota",
    "uploads-exhausted": "insufficient_quota",
    "request-invalid": "invalid_value",
    "tools-not-taken": "unsupported_parameter",
    "images-not-supported": "unsupported_value",
    "file-unreadable": "unsupported_value",
}
"""What OpenAI's clients know by another code; any other is ours with `_` for `-`."""
_STATUSES = {"agent-archived": 404, "message-too-long": 400, "provider-rejected": 400}
_PARAMETERS = {
    "agent-not-found": "model",
    "agent-archived": "model",
    "message-too-long": "messages",
    "tools-not-taken": "tools",
    "tool-result-unknown": "input",
    "tool-calls-unanswered": "input",
    "other-agent-answers": "model",
    "session-not-found": "conversation",
}
_UNPROCESSABLE, _BAD_REQUEST, _CONFLICT, _SERVER_ERROR = 422, 400, 409, 500
_FINAL = "x_should_not_retry"
_NO_RETRY = (b"x-should-retry", b"false")


class InvalidParameter(AppError):
    """A parameter of a request to the OpenAI-compatible API is not valid.

    `param` names it; `openai_code` is the code that OpenAI's clients know.
    """

    kind = ErrorKind.MALFORMED
    code = "invalid-parameter"

    def __init__(self, param: str, detail: str, openai_code: str = "invalid_value") -> None:
        super().__init__(detail)
        self.param = param
        self.extensions["param"] = param
        self.extensions["openai_code"] = openai_code


def mark_final(error: AppError) -> None:
    """Note that the same request would fail the same way, so that SDKs do not send it again."""
    error.extensions[_FINAL] = True


def error_body(error: AppError) -> dict[str, Any]:
    """Return an error as an event of a stream has it."""
    problem: dict[str, Any] = {"code": error.code, "detail": error.detail}
    return _error(problem | error.extensions, openai_status_of(error))


class OpenAIErrorsMiddleware:
    """Writes problem documents of paths under `/v1` in the shape of OpenAI's API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        more_headers = openai_headers(scope["state"]["request_id"])
        await self._app(scope, receive, ProblemRewriter(send, _rewritten, more_headers))


def _rewritten(status: int, problem: dict[str, Any]) -> RewrittenError:
    status = _STATUSES.get(problem["code"]) or status
    if status == _UNPROCESSABLE:
        status = _BAD_REQUEST
    headers = [(b"content-type", b"application/json")]
    if problem.get(_FINAL) or status == _CONFLICT:
        headers.append(_NO_RETRY)
    return RewrittenError(status, headers, orjson.dumps(_error(problem, status)))


def _error(problem: dict[str, Any], status: int) -> dict[str, Any]:
    code: str = problem["code"]
    given: str = problem.get("openai_code") or _CODES.get(code, code.replace("-", "_"))
    faults: list[dict[str, Any]] = problem.get("errors") or []
    if faults and "loc" not in faults[0]:  # of an answer, not of the request
        faults = []
    if faults and faults[0]["type"] == "missing":
        given = "missing_required_parameter"
    param = problem.get("param") or _PARAMETERS.get(code) or _name_of(faults)
    default = "server_error" if status >= _SERVER_ERROR else "invalid_request_error"
    kind = _TYPES.get(status, default)
    return {"error": {"message": problem["detail"], "type": kind, "param": param, "code": given}}


def _name_of(faults: Sequence[dict[str, Any]]) -> str | None:
    """Return the parameter of the first fault."""
    if not faults:
        return None
    name = ""
    for part in faults[0]["loc"][1:]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    return name or None


def openai_status_of(error: AppError) -> int:
    """Return the HTTP status of an error in the shape of OpenAI's API."""
    status = _STATUSES.get(error.code, status_of(error))
    return _BAD_REQUEST if status == _UNPROCESSABLE else status

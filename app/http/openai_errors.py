"""Errors under `/v1` in the shape of OpenAI's API, and the headers that its SDKs look for.

Everything that answers a request of this server answers an error as a problem document, also what
never reaches an endpoint. This middleware writes those of `/v1` anew.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import AppError, ErrorKind
from app.http.problems import PROBLEM_TYPE, status_of

PREFIX = "/v1/"
_PROBLEM_TYPE = PROBLEM_TYPE.encode()
_LONGEST_PROBLEM_BYTES = 64 * 1024
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
    return _error(problem | error.extensions, _status_of(error))


class OpenAIErrorsMiddleware:
    """Writes problem documents of paths under `/v1` in the shape of OpenAI's API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        request_id: str = scope["state"]["request_id"]
        await self._app(scope, receive, _Rewriter(send, request_id))


class _Rewriter:
    """A `send` that holds a problem document back until it is complete."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
            message = {**message, "headers": headers}
            if (b"content-type", _PROBLEM_TYPE) in headers:
                self._start = message
                return
        elif self._start and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body") and len(self._body) < _LONGEST_PROBLEM_BYTES:
                return
            await self._send_error(self._start)
            return
        await self._send(message)

    async def _send_error(self, start: Message) -> None:
        problem: dict[str, Any] = orjson.loads(bytes(self._body))
        status: int = _STATUSES.get(problem["code"]) or start["status"]
        if status == _UNPROCESSABLE:
            status = _BAD_REQUEST
        body = orjson.dumps(_error(problem, status))
        headers = [
            pair for pair in start["headers"] if pair[0] not in {b"content-type", b"content-length"}
        ]
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        is_final = problem.get(_FINAL) or status == _CONFLICT
        if is_final and _NO_RETRY not in headers:
            headers.append(_NO_RETRY)
        await self._send({**start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


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


def _status_of(error: AppError) -> int:
    status = _STATUSES.get(error.code, status_of(error))
    return _BAD_REQUEST if status == _UNPROCESSABLE else status

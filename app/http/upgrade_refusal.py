"""Refuse a WebSocket before its upgrade: an HTTP answer with the error as JSON."""

import orjson
from starlette.types import Scope, Send

from app.core.errors import AppError
from app.core.request_context import current_context
from app.http.openai_errors import error_body, openai_status_of
from app.http.problems import problem_response

_EXTENSION = "websocket.http.response"
_POLICY_VIOLATION = 1008
_OF_PROBLEMS = (b"content-type", b"content-length")


async def refuse_upgrade(error: AppError, scope: Scope, send: Send) -> None:
    """Answer with the error's status and headers, in the shape of OpenAI's API.

    A server without that extension of ASGI answers 403 without a body.
    """
    if context := current_context():
        context.problem = error
    if _EXTENSION not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    problem = problem_response(error, scope["state"]["request_id"])
    headers = [pair for pair in problem.raw_headers if pair[0] not in _OF_PROBLEMS]
    headers += [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    status = openai_status_of(error)
    await send({"type": f"{_EXTENSION}.start", "status": status, "headers": headers})
    await send({"type": f"{_EXTENSION}.body", "body": orjson.dumps(error_body(error))})

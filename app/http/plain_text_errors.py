"""Errors of `/api/chat` as plain text: the AI SDK shows the body of an error as it is."""

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.problem_rewriter import ProblemRewriter, RewrittenError

_PREFIX = "/api/chat/"


def is_plain_text_path(path: str) -> bool:
    """Tell whether the errors of a path are plain text."""
    return f"{path}/".startswith(_PREFIX)


class PlainTextErrorsMiddleware:
    """Writes problem documents of `/api/chat` as the sentence of their `detail`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "http" and is_plain_text_path(scope["path"]):
            send = ProblemRewriter(send, _rewritten)
        await self._app(scope, receive, send)


def _rewritten(status: int, problem: dict[str, Any]) -> RewrittenError:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"x-error-code", problem["code"].encode()),
    ]
    return RewrittenError(status, headers, problem["detail"].encode())

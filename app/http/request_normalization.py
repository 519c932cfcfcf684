"""Requests that mean the same as another one: a slash at the end, and HEAD."""

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RequestNormalizationMiddleware:
    """Serves `/agents/` as `/agents`, and HEAD as GET without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.endswith("/") and path != "/":
                # A redirect would name the scheme that a proxy in front does not use.
                shorter = path.rstrip("/") or "/"
                scope = {**scope, "path": shorter, "raw_path": shorter.encode()}
            if scope["method"] == "HEAD":
                await self._serve_head({**scope, "method": "GET"}, receive, send)
                return
        await self._app(scope, receive, send)

    async def _serve_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head of what GET answers, and end it there, also where it is a stream."""
        async with anyio.create_task_group() as group:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    group.cancel_scope.cancel()

            await self._app(scope, receive, send_head)

"""Each request's ids, its one line in the log, and its place in the metrics. Outermost of all."""

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.logging import FrequentLogLine, describe_cause
from app.core.request_context import (
    RequestContext,
    new_request_id,
    parse_traceparent,
    set_context,
    valid_request_id,
)
from app.core.security import Caller, Unauthenticated
from app.telemetry import Telemetry

logger = logging.getLogger("app.requests")

_LINES = {
    (is_refused, is_ours): FrequentLogLine(
        logger,
        logging.WARNING if is_ours else logging.INFO,
        "request refused" if is_refused else "request",
    )
    for is_refused in (False, True)
    for is_ours in (False, True)
}
_CLIENT_CLOSED_REQUEST = 499
"""As nginx calls a client that left before the answer; it is never sent."""
_MAX_PATH = 200
_STARTS = ("http.response.start", "websocket.http.response.start")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_STATIC_ROUTES = frozenset(
    (
        "/messages/text", "/v1/chat/completions", "/v1/responses", "/v1/audio/transcriptions",
        "/v1/audio/speech", "/api/chat",
    )
)  # fmt: skip
"""Served before FastAPI chooses a route."""


class RequestLogMiddleware:
    """Gives each request its ids, and tells of it once it has been answered."""

    def __init__(self, app: ASGIApp, *, logs_every_request: bool) -> None:
        """Refused and broken requests are logged in any case."""
        self._app = app
        self._logs_every_request = logs_every_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        context, headers = _read_ids(scope)
        telemetry: Telemetry | None = state.get("telemetry")
        if telemetry:
            telemetry.begin_request(context)
        set_context(context)
        state["request_id"] = context.request_id
        exchange = _Exchange(receive, send, headers)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            if scope["type"] == "http":
                # Soon: the responses of one moment leave first, so that a line delays none of them.
                loop = asyncio.get_running_loop()
                loop.call_soon(self._tell, scope, context, telemetry, exchange)
            elif context.problem:  # a WebSocket that was refused, or whose caller was
                status = exchange.status or HTTPStatus.FORBIDDEN
                _log(scope, context, status, 0, has_left=False)

    def _tell(
        self,
        scope: Scope,
        context: RequestContext,
        telemetry: Telemetry | None,
        exchange: "_Exchange",
    ) -> None:
        seconds = time.monotonic() - context.received_at
        status, has_left = exchange.status or _CLIENT_CLOSED_REQUEST, exchange.has_left
        if telemetry:
            metrics, route = telemetry.metrics, _route(scope)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.requests.add(method, route, str(status))
            metrics.request_seconds.observe(seconds, route)
            if context.problem:
                metrics.refusals.add(context.problem.code)
        if self._logs_every_request or context.problem or has_left or not exchange.status:
            _log(scope, context, status, seconds, has_left=has_left)


class _Exchange:
    """Passes a request and its response on, and notes what became of them."""

    __slots__ = ("_headers", "_is_complete", "_receive", "_send", "has_left", "status")

    def __init__(self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self._is_complete = False
        self.status = 0
        """0 until a response begins."""
        self.has_left = False
        """True where the client left before the end of its answer."""

    async def send(self, message: Message) -> None:
        """Pass a message of the response on; its head gets the ids."""
        if message["type"] in _STARTS:
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers]
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body")
        await self._send(message)

    async def receive(self) -> Message:
        """Pass a message of the request on."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self.has_left = True
        return message


def _read_ids(scope: Scope) -> tuple[RequestContext, list[tuple[bytes, bytes]]]:
    """Return the request's ids, the caller's own where they are valid, and headers that say so."""
    request_id: str | None = None
    parent, traceparent = None, None
    for name, value in scope["headers"]:
        if name in {b"request-id", b"x-request-id"}:
            request_id = request_id or valid_request_id(value)
        elif name == b"traceparent":
            parent = parse_traceparent(value)
            traceparent = value if parent else None
    request_id = request_id or new_request_id()
    headers = [(b"request-id", request_id.encode())]
    if traceparent:
        headers.append((b"traceparent", traceparent))
    return RequestContext(request_id, parent.trace_id if parent else None, parent), headers


def _log(
    scope: Scope, context: RequestContext, status: int, seconds: float, *, has_left: bool
) -> None:
    """Write the line. Never the query string, which may hold a token."""
    problem = context.problem
    caller: Caller | None = scope["state"].get("caller")
    fields: dict[str, Any] = {
        "method": scope.get("method"),
        "path": _shown_path(scope["path"]),
        "status": status,
        "ms": round(seconds * 1000, 1),
        "caller": caller.kind.value if caller else None,
        "key_id": caller.key_id if caller else None,
        "client_left": True if has_left else None,
    }
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if problem:
        fields["code"], fields["detail"] = problem.code, problem.detail
        fields["reason"] = problem.reason if isinstance(problem, Unauthenticated) else None
        fields["cause"] = describe_cause(problem) if is_ours else None
    _LINES[bool(problem), is_ours].write(fields)


def _route(scope: Scope) -> str:
    """Return the path's template, of which there are few."""
    path = getattr(scope.get("route"), "path", None)
    if isinstance(path, str) and path:
        return path
    return scope["path"] if scope["path"] in _STATIC_ROUTES else "unmatched"


def _shown_path(path: str) -> str:
    if len(path) <= _MAX_PATH and path.isprintable():
        return path
    return "".join(each if each.isprintable() else "?" for each in path[:_MAX_PATH])

"""What is around every response: an id, headers for browsers, and a net for what nobody caught.

Plain ASGI, outside of everything.
"""

import logging
import secrets
import sys

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import StartRefused
from app.routers.problems import problem_response
from app.services.turns.errors import InternalError

logger = logging.getLogger(__name__)

_CSP, _CACHE = b"content-security-policy", b"cache-control"
_NOTHING = (_CSP, b"default-src 'none'; frame-ancestors 'none'")
_PAGES = (
    _CSP,
    (
        b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
)
_POLICIES = {"/docs": _PAGES, "/redoc": _PAGES}
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_UNCACHED = (*_SECURITY_HEADERS, (_CACHE, b"no-store"))


class Envelope:
    """Gives each response its headers, and turns a bug into a 500 without detail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _without_traceback(send))
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        policy = _POLICIES.get(scope["path"], _NOTHING)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = message.get("headers", ())
                # What a response says itself of caches stands.
                rest = _SECURITY_HEADERS if any(name == _CACHE for name, _ in given) else _UNCACHED
                message["headers"] = [*given, (b"request-id", request_id.encode()), policy, *rest]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed", request_id)
            if started or scope["type"] != "http":
                raise  # the server cuts the connection, so that nobody takes it for the end
            await _problem(request_id)(scope, receive, send_with_headers)


class Net:
    """Turns a bug into a 500 without detail, before FastAPI writes one of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            if started or scope["type"] != "http":
                raise  # to the envelope
            request_id = scope["state"]["request_id"]
            logger.exception("request %s failed", request_id)
            await _problem(request_id)(scope, receive, send)


def _problem(request_id: str) -> Response:
    bug = InternalError("The server failed; its log says why, under the request's id.")
    return problem_response(bug, request_id)


def _without_traceback(send: Send) -> Send:
    """Let a server that refuses to start say so in a sentence, not with a traceback."""

    async def send_sentence(message: Message) -> None:
        refusal = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(refusal, StartRefused):
            message["message"] = str(refusal)
        await send(message)

    return send_sentence

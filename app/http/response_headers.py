"""ASGI middleware: request ids, security headers, and problem documents for unhandled errors."""

import logging
import sys
from typing import cast

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import AppError, StartRefused
from app.core.logging import log_fields
from app.core.request_context import current_context
from app.http.problems import problem_response
from app.http.protocol import ABORT_CONNECTION
from app.services.turns.errors import InternalError

logger = logging.getLogger(__name__)

_CSP, _CACHE = b"content-security-policy", b"cache-control"
_DEFAULT_POLICY = (_CSP, b"default-src 'none'; frame-ancestors 'none'")
_DOCS_POLICY = (
    _CSP,
    (
        b"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
)
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_EXPECTED = (AppError, TimeoutError)
"""In mid-answer: its caller may not be here any more, or reads nothing."""
_UNCACHED_HEADERS = (*_SECURITY_HEADERS, (_CACHE, b"no-store"))
_DEFAULT_HEADERS = (_DEFAULT_POLICY, *_UNCACHED_HEADERS)
_DOCS_HEADERS = (_DOCS_POLICY, *_UNCACHED_HEADERS)
_HEADERS_OF_PATHS = {"/docs": _DOCS_HEADERS, "/redoc": _DOCS_HEADERS}


class ResponseHeadersMiddleware:
    """The outermost middleware: adds the request id and security headers to every response.

    It also answers an unhandled error with a 500 without detail.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _without_traceback(send))
            return
        headers = _HEADERS_OF_PATHS.get(scope["path"], _DEFAULT_HEADERS)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = message.get("headers", ())
                # What a response says itself of caches and of its content stands.
                names = {name for name, _ in given}
                rest = [pair for pair in headers if pair[0] not in names]
                message["headers"] = [*given, *rest]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if started and scope["type"] == "http" and isinstance(error, _EXPECTED):
                _note_cut(error)
                if ABORT_CONNECTION in scope["state"]:
                    return  # our server aborts a response that is not complete
            if started or scope["type"] != "http":
                raise  # the server aborts the connection, so the response is seen as incomplete
            logger.exception("request failed with an unexpected error")
            await _problem(scope)(scope, receive, send_with_headers)


class UnhandledErrorMiddleware:
    """Answers an unhandled error with a 500 problem document, before FastAPI writes its own 500."""

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
                raise  # to `ResponseHeadersMiddleware`
            logger.exception("request failed with an unexpected error")
            await _problem(scope)(scope, receive, send)


def _note_cut(error: Exception) -> None:
    context = current_context()
    if context and isinstance(error, AppError):
        context.problem = error
    logger.info("response cut off", extra=log_fields(cause=type(error).__name__))


def _problem(scope: Scope) -> Response:
    error = InternalError(
        "The server failed with an unexpected error. Search its log for the `request_id`."
    )
    return problem_response(error, scope["state"]["request_id"])


def _without_traceback(send: Send) -> Send:
    """Return a `send` that reports `StartRefused` by its message instead of a traceback."""

    async def send_sentence(message: Message) -> None:
        refusal = sys.exc_info()[1]
        while isinstance(refusal, BaseExceptionGroup):  # as a task group raises it
            refusal = cast("BaseExceptionGroup[BaseException]", refusal).exceptions[0]
        if message["type"] == "lifespan.startup.failed" and isinstance(refusal, StartRefused):
            message["message"] = str(refusal)
        await send(message)

    return send_sentence

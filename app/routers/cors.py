"""Which sites' pages may call the API from a browser: those that are named, no others."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")
_RESPONSE_HEADERS = (
    "Request-Id", "Link", "Retry-After", "Idempotent-Replayed", "X-Transcription", "X-Turn-Id",
)  # fmt: skip


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Answer the browsers of these sites; without cookies, for nobody is known by one."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_RESPONSE_HEADERS,
        allow_credentials=False,
        max_age=600,
    )

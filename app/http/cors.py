"""Cross-origin resource sharing (CORS) for the configured origins."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_RESPONSE_HEADERS = (
    "Request-Id", "Link", "Retry-After", "Idempotent-Replayed", "X-Transcription", "X-Turn-Id",
    "X-Session-Id", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset",
    "X-RateLimit-Resource", "X-Should-Retry", "WWW-Authenticate", "Allow", "Accept-Ranges",
    "Content-Range", "Content-Length", "Content-Disposition", "ETag", "Traceparent", "X-Request-Id",
    "X-Error-Code", "X-Vercel-AI-UI-Message-Stream", "OpenAI-Processing-Ms", "OpenAI-Version",
    "X-RateLimit-Limit-Requests", "X-RateLimit-Remaining-Requests", "X-RateLimit-Reset-Requests",
    "X-RateLimit-Limit-Tokens", "X-RateLimit-Remaining-Tokens", "X-RateLimit-Reset-Tokens",
)  # fmt: skip


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Wrap `app` so that pages of `origins` may call it; without cookies, which are not used."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=["*"],  # those that a preflight asks for are echoed to these sites
        expose_headers=_RESPONSE_HEADERS,
        allow_credentials=False,
        max_age=600,
    )

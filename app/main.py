"""The application: `uvicorn app.main:app`."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from app import __version__
from app.core.config import Settings, load_settings
from app.routers import (
    agents,
    audit,
    docs,
    health,
    keys,
    messages,
    sessions,
    tokens,
    turns,
    usage,
    workspaces,
)
from app.routers.access import Access
from app.routers.cors import allow_origins
from app.routers.drain import draining_on_signals
from app.routers.envelope import Envelope, Net
from app.routers.problems import install_problem_handlers
from app.routers.short_way import ShortWay
from app.routers.statuses import describe_errors
from app.state import State, open_state

_DESCRIPTION = """
Agents that talk, in text and by voice. Every error is a problem document (RFC 9457); lists are
JSON arrays with the next page in the `Link` header.
"""

_ENDPOINTS = (
    agents,
    sessions,
    tokens,
    messages,
    turns,
    usage,
    keys,
    workspaces,
    audit,
    health,
    docs,
)


class Application(FastAPI):
    """FastAPI behind our own front: what the front answers itself never comes to FastAPI's layers.

    Those of FastAPI that are passed by ask whether OpenTelemetry is set up, and write a 500.
    """

    front: ASGIApp | None = None

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.front or self.inside)(scope, receive, send)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as FastAPI does."""
        await super().__call__(scope, receive, send)


def create_app(
    settings: Settings,
    open_state: Callable[[Settings], AbstractAsyncContextManager[State]] = open_state,
) -> Application:
    """Build the application; nothing is opened before it starts.

    Tests pass their own `open_state`, with fakes for the providers.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with open_state(settings) as state:
            with draining_on_signals(state["turns"].drain):
                yield {**state}

    app = Application(
        title="AI Agent Platform",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # As they are: `include_router` would build each again, at the first request.
        routes=[route for module in _ENDPOINTS for route in module.router.routes],
    )
    _describe_keys_and_errors(app)
    install_problem_handlers(app)
    app.add_middleware(Net)
    door: ASGIApp = Access(ShortWay(app.inside))
    if settings.allowed_origins:
        door = allow_origins(door, settings.allowed_origins)
    app.front = Envelope(door)
    docs.mount_assets(app)
    return app


def _describe_keys_and_errors(app: FastAPI) -> None:
    """Say in the API's description how to send a key, and what may go wrong where."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = describe()
            schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["key"] = {
                "type": "http",
                "scheme": "bearer",
                "description": "A key, a session token, or a Supabase access token.",
            }
            schema["security"] = [{"key": []}]
            describe_errors(schema)
        return app.openapi_schema or {}

    app.openapi = described


app = create_app(load_settings())

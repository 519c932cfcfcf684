"""The ASGI application: `uvicorn app.main:app`."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from app import __version__
from app.core.config import Settings, load_settings
from app.http.authentication import AuthenticationMiddleware
from app.http.cors import allow_origins
from app.http.dispatcher import EndpointDispatcher
from app.http.openai_errors import OpenAIErrorsMiddleware
from app.http.openapi import describe_errors, describe_events, describe_operations
from app.http.plain_text_errors import PlainTextErrorsMiddleware
from app.http.problems import install_problem_handlers
from app.http.request_log import RequestLogMiddleware
from app.http.request_normalization import RequestNormalizationMiddleware
from app.http.response_headers import ResponseHeadersMiddleware, UnhandledErrorMiddleware
from app.http.shutdown import draining_on_signals
from app.routers import (
    agents,
    audit,
    console,
    docs,
    files,
    health,
    keys,
    mcp_servers,
    me,
    messages,
    messages_text,
    metrics,
    secrets,
    session_events,
    sessions,
    system,
    tokens,
    tool_calls,
    tools,
    turns,
    usage,
    users,
    workspaces,
)
from app.routers.openai import (
    chat_completions,
    conversations,
    models,
    responses,
    speech,
    stored_responses,
    transcriptions,
)
from app.routers.realtime import client_secrets
from app.routers.realtime import route as realtime_route
from app.routers.ui_streams import agui, chat
from app.state import State, open_state

_DESCRIPTION = """
Agents that talk, in text and by voice. Every error is a problem document (RFC 9457); lists are
JSON arrays with the next page in the `Link` header.
"""

_ENDPOINTS = (
    agents,
    sessions,
    session_events,
    tokens,
    messages,
    messages_text,
    chat_completions,
    responses,
    transcriptions,
    speech,
    stored_responses,
    conversations,
    models,
    chat,
    agui,
    client_secrets,
    files,
    turns,
    tool_calls,
    usage,
    users,
    tools,
    mcp_servers,
    secrets,
    keys,
    workspaces,
    audit,
    me,
    system,
    health,
    metrics,
    docs,
    console,
)


class Application(FastAPI):
    """FastAPI behind our own middleware, so that requests which that answers never reach FastAPI.

    Bypassed are FastAPI's check whether OpenTelemetry is set up, and its handler that writes a 500.
    """

    front: ASGIApp | None = None

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.front or self.inside)(scope, receive, send)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request with FastAPI."""
        await super().__call__(scope, receive, send)


def create_app(
    settings: Settings,
    open_state: Callable[[Settings], AbstractAsyncContextManager[State]] = open_state,
) -> Application:
    """Build the application; its lifespan opens the database and the providers.

    Tests pass an `open_state` of their own, with fakes for the providers.
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
        # The routes themselves, since `include_router` would build each of them again.
        routes=[route for module in _ENDPOINTS for route in module.router.routes],
    )
    _describe_keys_and_errors(app)
    install_problem_handlers(app)
    app.add_middleware(UnhandledErrorMiddleware)
    plain_endpoints = {
        (messages_text.METHOD, messages_text.PATH): messages_text.send_text_message,
        chat_completions.ROUTE: chat_completions.create_chat_completion,
        responses.ROUTE: responses.create_response,
        transcriptions.ROUTE: transcriptions.create_transcription,
        speech.ROUTE: speech.create_speech,
        chat.ROUTE: chat.continue_chat,
        agui.ROUTE: agui.run_agent,
        realtime_route.ROUTE: realtime_route.serve_realtime,
    }
    front: ASGIApp = AuthenticationMiddleware(EndpointDispatcher(plain_endpoints, app.inside))
    if settings.allowed_origins:
        front = allow_origins(front, settings.allowed_origins)
    front = PlainTextErrorsMiddleware(ResponseHeadersMiddleware(front))
    front = OpenAIErrorsMiddleware(front)
    front = RequestLogMiddleware(front, logs_every_request=settings.access_log)
    app.front = RequestNormalizationMiddleware(front)
    docs.mount_assets(app)
    return app


def _describe_keys_and_errors(app: FastAPI) -> None:
    """Add the security scheme and the error responses of each endpoint to the OpenAPI document."""
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
            describe_events(schema)
            describe_operations(schema)
        return app.openapi_schema or {}

    app.openapi = described


app = create_app(load_settings())

"""Connections of the worker to MCP servers, opened when they are needed and kept for a while.

A connection belongs to one workspace and one set of headers. One of the older era serves one call
at a time, so that what its server asks meanwhile belongs to that call.
"""

import hashlib
import os
import ssl
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, cast

import anyio
import httpx2
import mcp_types as types
import orjson
from anyio.abc import TaskGroup
from mcp import Client, MCPError
from mcp.client import ClientRequestContext
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from app.services.mcp_port import McpError, McpFailure
from app.services.mcp_service.guarded_transport import (
    Attempt,
    BoundedTransport,
    current_attempt,
)
from app.services.mcp_service.program import ENVIRONMENT
from app.services.outbound.addresses import Guard
from app.services.sandbox.environment import minimal_environment

_IDLE_SECONDS = 60.0
_MOST_CONNECTIONS = 128
_HANDSHAKE_BYTES = 256 * 1024
_CLIENT_INFO = types.Implementation(name="agent-platform", version="1")
_PAUSES_SECONDS = (0.0, 1.0, 5.0, 15.0, 60.0)
_LOST_SESSION = (400, 401, 404)


class McpConnection:
    """One connection; its SDK client lives in the task that `run` is."""

    def __init__(self, key: str, *, is_program: bool = False) -> None:
        self.key = key
        self._is_program = is_program
        self.users = 0
        self.idle_since = time.monotonic()
        self.is_lost = False
        self.error: McpError | None = None
        self.ready = anyio.Event()
        self.closing = anyio.Event()
        self.has_served = False
        self.asks: Any = None
        """The call that a question of the server belongs to, with a method `ask`."""
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The connected client."""
        if self._client is None:
            raise RuntimeError("the connection is not open")
        return self._client

    @property
    def is_modern(self) -> bool:
        """True where each call is a request of its own, without a session."""
        client = self._client
        return client is not None and client.protocol_version in MODERN_PROTOCOL_VERSIONS

    @property
    def is_shared(self) -> bool:
        """True where several calls may use it at once."""
        return self.is_modern or self._is_program

    @property
    def is_free(self) -> bool:
        """True where one more call may use it."""
        if self.is_lost or self.error or self.closing.is_set():
            return False
        return self.users == 0 or self.is_shared

    def lost_session(self, status: int | None) -> bool:
        """Tell whether an answer means that a session that had served before is gone."""
        return self.has_served and not self.is_modern and status in _LOST_SESSION

    async def run(self, transport: AbstractAsyncContextManager[Any]) -> None:
        """Connect, stay until `closing`, and disconnect."""
        attempt = Attempt(_HANDSHAKE_BYTES)
        current_attempt.set(attempt)
        try:
            client = Client(
                transport,
                mode="auto",
                cache=None,
                client_info=_CLIENT_INFO,
                elicitation_callback=self._ask,
            )
            async with client as self._client:
                self.ready.set()
                await self.closing.wait()
        except Exception as error:  # noqa: BLE001  # whatever the SDK raises for what servers send
            self.error = connection_error(error, attempt)
        finally:
            self.is_lost = True
            self.ready.set()

    async def _ask(
        self, context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        del context
        if self.asks is None:
            return types.ErrorData(code=types.INVALID_REQUEST, message="No call asks for this")
        return await self.asks.ask(params)


def connection_error(error: BaseException, attempt: Attempt) -> McpError:
    """Return why there is no connection."""
    if attempt.failure is not None:
        return McpError(attempt.failure, attempt.message)
    if attempt.wants_authorization:  # whatever it says to the other versions of the protocol
        return McpError(McpFailure.UNAUTHORIZED, "It answered with HTTP status 401 or 403.")
    if attempt.status is not None and attempt.status >= 400:  # noqa: PLR2004  # an error
        message = f"It answered the handshake with HTTP status {attempt.status}."
        return McpError(McpFailure.INCOMPATIBLE, message)
    answer = ""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    if isinstance(error, MCPError):
        answer = error.message[:2000]
    elif isinstance(error, (OSError, anyio.BrokenResourceError)):
        return McpError(McpFailure.UNREACHABLE, "The program does not start, or ended.")
    is_foreign = isinstance(error, (ValidationError, ValueError))
    message = (
        "What it answers to the handshake is not MCP."
        if is_foreign
        else "It speaks no version of the protocol that this server knows."
    )
    return McpError(McpFailure.INCOMPATIBLE, message, answer=answer)


@asynccontextmanager
async def _program_streams(program: dict[str, Any]) -> AsyncGenerator[Any]:
    """Start a program of the operator's, and speak over its stdin and stdout."""
    environment = minimal_environment(
        added={ENVIRONMENT: orjson.dumps(program["env"]).decode(), **program["env"]}
    )
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "app.services.mcp_service.program", program["command"], *program["args"]],
        env=environment,
        cwd=program["cwd"],
    )
    with Path(os.devnull).open("w") as nowhere:  # noqa: ASYNC230  # opens at once
        async with stdio_client(parameters, nowhere) as streams:
            yield streams


class ConnectionPool:
    """Opens connections in `tasks`, and closes those that nobody uses."""

    def __init__(self, tasks: TaskGroup, guard: Guard, proxy: str | None) -> None:
        self._tasks = tasks
        self._guard = guard
        self._proxy = proxy
        self._connections: list[McpConnection] = []
        self._tls: ssl.SSLContext | None = None
        self._pauses: dict[str, tuple[int, float]] = {}
        """Of programs that failed: how often, and until when they are not started."""

    @asynccontextmanager
    async def connection(self, target: dict[str, Any]) -> AsyncGenerator[McpConnection]:
        """Yield a connection to `target`, new or used before. Raises `McpError`."""
        key = hashlib.sha256(orjson.dumps(target, option=orjson.OPT_SORT_KEYS)).hexdigest()
        connection = self._free(key)
        if connection is None:
            self._require_no_pause(key)
            connection = McpConnection(key, is_program="program" in target)
            self._connections.append(connection)
            self._tasks.start_soon(connection.run, self._transport(target))
        connection.users += 1
        try:
            await connection.ready.wait()
            if connection.error:
                self._note_failure(key, is_program="program" in target)
                raise connection.error
            self._pauses.pop(key, None)
            if not connection.is_shared and connection.users > 1:
                async with self.connection(target) as another:
                    yield another
                return
            yield connection
            connection.has_served = True
        finally:
            connection.users -= 1
            connection.idle_since = time.monotonic()
            if not connection.ready.is_set() or connection.is_lost:
                self.discard(connection)

    def discard(self, connection: McpConnection) -> None:
        """Close a connection, and use it no more."""
        connection.is_lost = True
        connection.closing.set()
        if connection in self._connections:
            self._connections.remove(connection)

    async def close_idle(self) -> None:
        """Close what nobody has used for a minute, for ever."""
        while True:
            await anyio.sleep(_IDLE_SECONDS / 4)
            oldest = time.monotonic() - _IDLE_SECONDS
            for connection in list(self._connections):
                if not connection.users and connection.idle_since < oldest:
                    self.discard(connection)

    def _require_no_pause(self, key: str) -> None:
        """Raise `McpError` where a program failed a moment ago."""
        _, ends_at = self._pauses.get(key, (0, 0.0))
        if time.monotonic() < ends_at:
            message = "The program failed; it is started again in a while."
            raise McpError(McpFailure.UNREACHABLE, message)

    def _note_failure(self, key: str, *, is_program: bool) -> None:
        if is_program:
            failures = self._pauses.get(key, (0, 0.0))[0] + 1
            pause = _PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS)) - 1]
            self._pauses[key] = (failures, time.monotonic() + pause)

    def _free(self, key: str) -> McpConnection | None:
        for connection in list(self._connections):
            if connection.is_lost and not connection.users:
                self.discard(connection)
            elif connection.key == key and connection.is_free:
                return connection
        unused = [each for each in self._connections if not each.users]
        if len(self._connections) >= _MOST_CONNECTIONS and unused:
            self.discard(min(unused, key=lambda each: each.idle_since))
        return None

    def _transport(self, target: dict[str, Any]) -> AbstractAsyncContextManager[Any]:
        if program := target.get("program"):
            return _program_streams(program)
        return self._http(str(target["url"]), target["headers"])

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request that belongs to no connection; return its answer. Raises `McpError`."""
        async with self._client(str(request.url), {}) as client:
            response = await client.send(request)
        attempt = current_attempt.get()
        if attempt and attempt.failure:
            raise McpError(attempt.failure, attempt.message)
        return response

    @asynccontextmanager
    async def _http(self, url: str, headers: dict[str, str]) -> AsyncGenerator[Any]:
        async with (
            self._client(url, headers) as client,
            streamable_http_client(
                url,
                http_client=client,
                max_sse_event_size=None,  # `BoundedTransport` has the limits
            ) as streams,
        ):
            yield streams

    @asynccontextmanager
    async def _client(
        self, url: str, headers: dict[str, str]
    ) -> AsyncGenerator[httpx2.AsyncClient]:
        self._tls = self._tls or ssl.create_default_context()
        scheme = url.partition(":")[0]
        transport = BoundedTransport(self._guard, scheme, self._tls, self._proxy)
        own = {"user-agent": "agent-platform", "accept-encoding": "identity"}
        async with httpx2.AsyncClient(
            transport=transport, headers=own | headers, timeout=None, trust_env=False
        ) as client:
            client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            yield client

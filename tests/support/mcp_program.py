"""An MCP server of the official SDK: `python -m tests.support.mcp_program ERA [PORT]`.

ERA is `modern`, `legacy` (it refuses what came after the handshake) or `stdio`. Over HTTP it writes
its port in a line once it serves, and counts how often `record` ran for `GET /count`.
"""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import anyio
import uvicorn
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

server = MCPServer("trial", version="1.2")
recorded: list[str] = []
cancelled: list[str] = []
MODERN = b"2026-07-28"


class Confirmation(BaseModel):
    sure: bool


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def record(note: str) -> str:
    """Notes something, for good."""
    recorded.append(note)
    return f"noted {len(recorded)}"


@server.tool()
async def hold(note: str) -> None:
    """Notes something, and answers never."""
    recorded.append(note)
    try:
        await anyio.sleep_forever()
    finally:
        cancelled.append(note)


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("no such order")


@server.tool()
async def slow(ctx: Context[Any], steps: int = 2) -> str:
    """Takes its time, and says how far it is."""
    for step in range(steps):
        await ctx.report_progress(step, steps, f"step {step}")
        await anyio.sleep(0.3)
    return "done"


@server.tool()
def large(characters: int) -> str:
    """Returns a long text."""
    return "x" * characters


@server.tool()
def headers(ctx: Context[Any]) -> dict[str, str]:
    """Returns the headers of the request."""
    request: Any = ctx.request_context.request
    return dict(request.headers)


@server.tool()
def variables() -> list[str]:
    """Returns the names of the environment's variables."""
    return sorted(os.environ)


async def _ask(what: str) -> Elicit[Confirmation]:
    return Elicit(f"Really {what}?", Confirmation)


@server.tool()
async def refund(what: str, confirmation: Annotated[Confirmation, Resolve(_ask)]) -> str:
    """Asks before it does something."""
    recorded.append(what)
    return f"{what}: {confirmation.sure}"


def _application(*, is_legacy: bool) -> Any:  # noqa: ANN401  # ASGI
    inner = server.streamable_http_app()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/count":
            counts = {"recorded": len(recorded), "cancelled": len(cancelled)}
            await JSONResponse(counts)(scope, receive, send)
            return
        version = dict(scope.get("headers", ())).get(b"mcp-protocol-version")
        if is_legacy and scope["type"] == "http" and version == MODERN:
            await PlainTextResponse("unknown protocol version", 400)(scope, receive, send)
            return
        await inner(scope, receive, send)

    return serve


class _Announcing(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:  # noqa: ANN401  # uvicorn's
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(port, flush=True)  # noqa: T201  # to the test


def main() -> None:
    era = sys.argv[1]
    if era == "stdio":
        server.run("stdio")
        return
    application = _application(is_legacy=era == "legacy")
    _Announcing(uvicorn.Config(application, port=int(sys.argv[2]), log_level="critical")).run()


if __name__ == "__main__":
    main()

"""MCP servers of the official SDK on loopback, and the worker that speaks to them."""

import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from app.services.mcp_port import McpCall, McpTarget
from app.services.mcp_service.client import McpWorkerClient
from tests.support.scripted_tools import ScriptedChatModel

WORKSPACE = UUID(int=7)


@dataclass(frozen=True)
class SdkServer:
    """A running server; `url` is its endpoint."""

    port: int
    process: "subprocess.Popen[str]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def allowed(self) -> str:
        return f"127.0.0.1:{self.port}"

    def target(self, **headers: str) -> McpTarget:
        return McpTarget(WORKSPACE, self.url, headers)

    async def counts(self) -> dict[str, int]:
        """Return how often something was recorded, and cancelled."""
        async with httpx2.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{self.port}/count")).json()


@contextmanager
def sdk_server(era: str, port: int = 0) -> Generator[SdkServer]:
    command = [sys.executable, "-m", "tests.support.mcp_program", era, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield SdkServer(int(process.stdout.readline()), process)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def modern_server() -> Iterator[SdkServer]:
    with sdk_server("modern") as server:
        yield server


@pytest.fixture(scope="session")
def legacy_server() -> Iterator[SdkServer]:
    with sdk_server("legacy") as server:
        yield server


@pytest.fixture(params=["modern", "legacy"])
def sdk(request: pytest.FixtureRequest) -> SdkServer:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
async def worker(
    modern_server: SdkServer, legacy_server: SdkServer
) -> AsyncIterator[McpWorkerClient]:
    async with McpWorkerClient(f"{modern_server.allowed},{legacy_server.allowed}") as worker:
        yield worker


def call_of(
    target: McpTarget,
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout_seconds: float = 30,
    max_bytes: int = 1 << 20,
    max_image_bytes: int = 6 << 20,
    **more: Any,
) -> McpCall:
    return McpCall(
        more.pop("id", None) or uuid4(),
        target,
        tool,
        arguments or {},
        timeout_seconds,
        max_bytes,
        max_image_bytes,
        more.pop("meta", {}),
        **more,
    )


@pytest.fixture
def chat_model() -> ScriptedChatModel:
    return ScriptedChatModel()


async def make_server(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    body = {"name": "shop", "url": "https://mcp.example.com/mcp"} | body
    made = await client.post("/mcp-servers", json=body)
    assert made.status_code == 201, made.text
    return made.json()


async def accept(client: httpx2.AsyncClient, server: dict[str, Any], *names: str) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name in names:
        accepted = await client.post(f"/mcp-servers/{server['id']}/tools/{name}/accept", json={})
        assert accepted.status_code == 200, accepted.text
        read = accepted.json()
    return read

"""The server of the reference set, which is written in TypeScript, over both transports."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.services.files.images import image_of
from app.services.mcp_port import McpAnswer, McpCall, McpQuestion, McpResult, McpTarget
from app.services.mcp_service.client import McpWorkerClient
from app.services.mcp_service.programs import McpClientSet, read_programs
from tests.mcp.conftest import WORKSPACE, call_of
from tests.support.ports import free_port
from tests.support.tools import ToolMissing, find_tool

pytestmark = pytest.mark.anyio

PACKAGE = Path(__file__).parent / "npm/node_modules/@modelcontextprotocol/server-everything"
ENTRY = PACKAGE / "dist/index.js"


def node() -> str:
    """Return the path of Node.js. Raises `ToolMissing`, also without the package."""
    if not ENTRY.exists():
        raise ToolMissing("npm packages are missing: `npm ci --prefix tests/mcp/npm`.")
    return find_tool("node", "nodejs")


@pytest.fixture(scope="module")
def everything() -> Iterator[McpTarget]:
    """The server over streamable HTTP."""
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "PORT": str(port)}
    command = [node(), str(ENTRY), "streamableHttp"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr
        try:
            while "listening" not in (line := process.stderr.readline()):
                assert line, "the server ended"
            yield McpTarget(WORKSPACE, f"http://127.0.0.1:{port}/mcp")
        finally:
            process.kill()


def port_of(target: McpTarget) -> str:
    assert target.url
    return target.url.split("/")[2]


async def call(client: McpWorkerClient | McpClientSet, made: McpCall) -> McpResult:
    result = await client.call(made)
    assert isinstance(result, McpResult)
    return result


async def test_reference_server_over_http(everything: McpTarget) -> None:
    async with McpWorkerClient(port_of(everything)) as worker:
        listing = await worker.list_tools(everything, 30)
        echoed = await call(worker, call_of(everything, "echo", {"message": "hello"}))
        summed = await call(worker, call_of(everything, "get-sum", {"a": 2, "b": 3}))
        image = await call(worker, call_of(everything, "get-tiny-image"))
        structured = await call(
            worker, call_of(everything, "get-structured-content", {"location": "Chicago"})
        )
        wrong = await call(worker, call_of(everything, "get-sum", {"a": "x"}))

    assert listing.server_name == "mcp-servers/everything"
    assert "hello" in echoed.text
    assert "5" in summed.text
    assert image_of(image.images[0])
    assert set(structured.structured) == {"temperature", "conditions", "humidity"}
    assert wrong.is_error


async def test_reference_server_asks(everything: McpTarget) -> None:
    async with McpWorkerClient(port_of(everything)) as worker:
        await worker.list_tools(everything, 30)
        made = call_of(everything, "trigger-elicitation-request")
        asked = await worker.call(made)
        assert isinstance(asked, McpQuestion)
        assert asked.form
        answered = await call(
            worker,
            call_of(
                everything,
                made.tool,
                id=made.id,
                question=asked.state,
                answer=McpAnswer("decline"),
            ),
        )

    assert "declined" in answered.text


async def test_reference_server_as_a_program(tmp_path: Path) -> None:
    path = tmp_path / "servers.json"
    entry = {"command": node(), "args": [str(ENTRY), "stdio"]}
    path.write_text(json.dumps({"mcpServers": {"everything": entry}}))
    target = McpTarget(WORKSPACE, program="everything")

    async with McpClientSet(McpWorkerClient(), read_programs(path)) as client:
        echoed = await call(client, call_of(target, "echo", {"message": "hello"}))

    assert "hello" in echoed.text

"""One server and one provider for all clients; each client is one program, which prints JSON."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.openai_api.conftest import add_agent, server_of
from tests.support.generators import installed_node_modules, node, python_clients
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

FOLDER = Path(__file__).parent
PROGRAMS = FOLDER / "programs"
RunProgram = Callable[..., dict[str, Any]]

TICKETS = '{"city":"Bern","tickets":2}'


def answer_of(messages: Sequence[dict[str, Any]]) -> str:
    """Answer with the number of the user's messages, so that an answer shows what it knows of."""
    asked = [line["content"] for line in messages if line["role"] == "user"]
    if "JSON" in str(asked[-1:]):
        return TICKETS
    results = [str(line["content"]) for line in messages if line["role"] == "tool"]
    told = f" {results[-1][:20]}." if results else ""
    return f"Answer {len(asked)} of some words.{told}"


@pytest.fixture(scope="package")
def real_provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.chat.text = answer_of
        yield provider


@pytest.fixture(scope="package")
def real_server(
    real_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with the agents `agent-ada`, and `agent-tia`, which has tools."""
    allowed = f"127.0.0.1:{real_provider.port}"
    folder = tmp_path_factory.mktemp("server")
    with server_of(
        folder, real_provider, TOOLS_ALLOWED_ADDRESSES=allowed, CHAT_MODEL_VISION="true"
    ) as server:
        add_agent(server)
        add_agent_with_tools(server, real_provider)
        yield server


def add_agent_with_tools(server: ServerProcess, provider: Provider) -> None:
    """Make an agent with a tool that its clients run, and one that must be approved."""
    color = {
        "name": "color",
        "description": "The color of a thing.",
        "kind": "client",
        "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
    }
    look = {
        "name": "look",
        "description": "What models there are.",
        "kind": "http",
        "approval": "always",
        "approval_by": "user",
        "http": {"method": "GET", "url": f"{provider.base_url}/models"},
    }
    with server.client() as client:
        tools = [client.post("/tools", json=tool) for tool in (color, look)]
        assert [tool.status_code for tool in tools] == [201, 201], tools[-1].text
        pins = [{"tool_id": tool.json()["id"]} for tool in tools]
        body = {"name": "Tia", "system_prompt": "You are Tia.", "tools": pins}
        assert client.post("/agents", json=body).status_code == 201


@pytest.fixture(scope="package")
def run_node(
    real_server: ServerProcess, real_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> RunProgram:
    """Run a program for Node; return what its checks found, by their names."""
    folder = tmp_path_factory.mktemp("node")
    modules = installed_node_modules(FOLDER / "tools", "real-clients")
    (folder / "node_modules").symlink_to(modules)
    for program in PROGRAMS.glob("*.mjs"):
        shutil.copy(program, folder)

    def run(program: str, *arguments: str) -> dict[str, Any]:
        return run_program([node(), program], folder, real_server, real_provider, *arguments)

    return run


@pytest.fixture(scope="package")
def run_python(
    real_server: ServerProcess, real_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> RunProgram:
    """Likewise, for Python."""
    python, folder = str(python_clients()), tmp_path_factory.mktemp("python")

    def run(program: str) -> dict[str, Any]:
        command = [python, str(PROGRAMS / program)]
        return run_program(command, folder, real_server, real_provider)

    return run


def run_program(
    command: Sequence[str],
    folder: Path,
    server: ServerProcess,
    provider: Provider,
    *arguments: str,
) -> dict[str, Any]:
    where = (server.url, re.sub("/v1$", "", provider.base_url), "none")
    ran = subprocess.run(
        [*command, *where, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])

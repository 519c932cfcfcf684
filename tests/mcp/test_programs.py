"""MCP servers that are programs of the operator's, over stdin and stdout."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from app.services.mcp_port import McpError, McpFailure, McpResult, McpTarget
from app.services.mcp_service.client import McpWorkerClient
from app.services.mcp_service.programs import McpClientSet, read_programs
from tests.mcp.conftest import WORKSPACE, call_of

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


def write(folder: Path, **servers: Any) -> Path:
    path = folder / "servers.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    return path


async def test_programs_are_started_listed_and_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-programs")
    command = {"command": sys.executable, "args": ["-m", "tests.support.mcp_program", "stdio"]}
    programs = read_programs(
        write(tmp_path, trial={**command, "cwd": str(ROOT), "env": {"NAMED": "yes"}})
    )
    target = McpTarget(WORKSPACE, program="trial")

    async with McpClientSet(McpWorkerClient(), programs) as client:
        listing = await client.list_tools(target, 30)
        added = await client.call(call_of(target, "add", {"a": 1, "b": 2}))
        variables = await client.call(call_of(target, "variables"))

    assert listing.server_name == "trial"
    assert added == McpResult(is_error=False, text='{"result":3}', structured={"result": 3})
    assert isinstance(variables, McpResult)
    of_the_tests = {"LC_CTYPE", "PWD", "DATA_DIR"}  # which the package `tests` sets itself
    assert set(variables.structured["result"]) - of_the_tests == {"HOME", "NAMED", "PATH"}


async def test_program_that_ends_is_unreachable_and_not_started_at_once_again(
    tmp_path: Path,
) -> None:
    started = tmp_path / "started"
    script = f"echo x >> {started}"
    programs = read_programs(write(tmp_path, bad={"command": "sh", "args": ["-c", script]}))

    async with McpClientSet(McpWorkerClient(), programs) as client:
        for _ in range(5):
            with pytest.raises(McpError) as caught:
                await client.list_tools(McpTarget(WORKSPACE, program="bad"), 30)
            assert caught.value.failure in {McpFailure.UNREACHABLE, McpFailure.INCOMPATIBLE}

    assert started.read_text().count("x") <= 3


async def test_program_that_is_gone_from_the_file() -> None:
    async with McpClientSet(McpWorkerClient(), {}) as client:
        with pytest.raises(McpError) as caught:
            await client.list_tools(McpTarget(WORKSPACE, program="gone"), 30)

    assert caught.value.failure is McpFailure.UNREACHABLE


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is no JSON"),
        ("[]", "has no object"),
        ('{"mcpServers": {"a": {"url": "https://x"}}}', "without a"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "which may have"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}', "which may have"),
        ('{"mcpServers": {"a": {"command": "x", "shell": true}}}', "which may have"),
    ],
)
def test_files_that_mean_nothing(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "servers.json"
    path.write_text(content)

    with pytest.raises(ValueError, match=problem):
        read_programs(path)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_programs(tmp_path / "nothing.json")


def test_programs_inherit_path_and_home_alone(tmp_path: Path) -> None:
    program = read_programs(write(tmp_path, a={"command": "x"}))["a"]

    assert set(program["env"]) <= {"PATH", "HOME"}
    assert program["env"]["PATH"] == os.environ["PATH"]

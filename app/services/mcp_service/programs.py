"""The operator's MCP servers that are programs: `MCP_SERVERS_FILE`, and a worker of their own."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, cast

import orjson

from app.services.mcp_port import (
    McpAuthorization,
    McpCall,
    McpError,
    McpFailure,
    McpGranted,
    McpListing,
    McpQuestion,
    McpResult,
    McpTarget,
    OnProgress,
)
from app.services.mcp_service.client import McpWorkerClient
from app.services.mcp_service.limits import WorkerLimits

_INHERITED = ("PATH", "HOME")
_KNOWN = {"command", "args", "env", "cwd", "type"}
Program = Mapping[str, Any]
"""`command`, `args`, `env` and `cwd`."""


def read_programs(path: Path) -> dict[str, Program]:
    """Read the operator's file. Raises `ValueError` with a sentence for the operator."""
    try:
        content: Any = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise ValueError("is no JSON") from None
    entries = cast("dict[str, Any]", content).get("mcpServers") if isinstance(content, dict) else 0
    if not isinstance(entries, dict):
        raise ValueError('has no object "mcpServers"')  # noqa: TRY004  # of the file
    return {name: _program(name, entry) for name, entry in cast("dict[str, Any]", entries).items()}


def _program(name: str, entry: Any) -> Program:  # noqa: ANN401  # JSON
    entry = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    if not isinstance(entry.get("command"), str):
        message = f'has {name!r} without a "command": URLs are for POST /mcp-servers'
        raise ValueError(message)  # noqa: TRY004  # of the file
    unknown = sorted(set(entry) - _KNOWN)
    args, env, cwd = entry.get("args", []), entry.get("env", {}), entry.get("cwd")
    is_valid = (
        not unknown
        and entry.get("type", "stdio") == "stdio"
        and isinstance(args, list)
        and all(isinstance(each, str) for each in cast("list[Any]", args))
        and isinstance(env, dict)
        and all(isinstance(each, str) for each in cast("dict[str, Any]", env).values())
        and (cwd is None or isinstance(cwd, str))
    )
    if not is_valid:
        raise ValueError(f'has {name!r}, which may have "command", "args", "env" (texts) and "cwd"')
    inherited = {each: os.environ[each] for each in _INHERITED if each in os.environ}
    return {"command": entry["command"], "args": args, "env": inherited | env, "cwd": cwd}


def has_command(program: Program) -> bool:
    """Tell whether a program's command can be found and run, as it will be when it is started."""
    command: str = program["command"]
    if program["cwd"] and os.sep in command:
        command = str(Path(program["cwd"], command))
    return shutil.which(command, path=program["env"].get("PATH")) is not None


class McpClientSet:
    """Fulfils the port `McpClient`: servers with a URL, and programs, in one worker each.

    Programs need memory and files that the other worker has given up. An async context manager.
    """

    def __init__(self, remote: McpWorkerClient, programs: Mapping[str, Program]) -> None:
        self._remote = remote
        self._programs = programs
        self._local = McpWorkerClient(programs=programs, limits=WorkerLimits(memory_bytes=None))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Be ready for requests; no process is started."""
        await self._stack.enter_async_context(self._remote)
        await self._stack.enter_async_context(self._local)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the processes, and what they have in hand."""
        await self._stack.aclose()

    def programs(self) -> Sequence[str]:
        """See `McpClient.programs`."""
        return tuple(self._programs)

    async def list_tools(self, target: McpTarget, timeout_seconds: float) -> McpListing:
        """See `McpClient.list_tools`."""
        return await self._client_of(target).list_tools(target, timeout_seconds)

    async def authorize(
        self, authorization: McpAuthorization, timeout_seconds: float
    ) -> McpGranted:
        """See `McpClient.authorize`."""
        return await self._remote.authorize(authorization, timeout_seconds)

    async def call(
        self, call: McpCall, on_progress: OnProgress | None = None
    ) -> McpResult | McpQuestion:
        """See `McpClient.call`."""
        return await self._client_of(call.target).call(call, on_progress)

    def _client_of(self, target: McpTarget) -> McpWorkerClient:
        if target.program is None:
            return self._remote
        if target.program not in self._programs:
            message = "The operator's file MCP_SERVERS_FILE does not name the program any more."
            raise McpError(McpFailure.UNREACHABLE, message)
        return self._local

"""Runs calls by the kind of their tool."""

from app.services.tool_ports import PinnedTool, ToolCallRequest, ToolKind, ToolResult
from app.services.tools.http_runner import HttpToolRunner, TracedResult
from app.services.tools.mcp_runner import McpToolRunner


class ToolRunners:
    """Fulfils the port `ToolRunner` for every kind that this server runs."""

    def __init__(self, http: HttpToolRunner, mcp: McpToolRunner) -> None:
        self._http = http
        self._mcp = mcp

    def problem_of(self, tool: PinnedTool, arguments: str) -> str | None:
        """See `ToolRunner.problem_of`."""
        return self._http.problem_of(tool, arguments)

    async def run(self, call: ToolCallRequest) -> ToolResult:
        """See `ToolRunner.run`."""
        if call.tool.kind is ToolKind.MCP:
            return await self._mcp.run(call)
        return await self._http.run(call)

    async def run_traced(self, call: ToolCallRequest) -> TracedResult:
        """Run one call, and return its request as well, where it is one of HTTP."""
        if call.tool.kind is ToolKind.MCP:
            return TracedResult(await self._mcp.run(call), None)
        return await self._http.run_traced(call)

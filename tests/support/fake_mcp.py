"""An MCP client that answers what a test says; no process, no connection."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from app.services.mcp_port import (
    ListedTool,
    McpAuthorization,
    McpCall,
    McpError,
    McpGranted,
    McpListing,
    McpQuestion,
    McpResult,
    McpTarget,
    OnProgress,
)

Outcome = McpResult | McpQuestion | McpError


def mcp_tool(name: str, description: str = "Does it.", **more: Any) -> ListedTool:
    parameters = more.pop("parameters", {"type": "object", "properties": {}})
    return ListedTool(name, description, parameters, more.pop("output_schema", None), more)


class FakeMcp:
    """Fulfils `McpClient`; remembers what it was asked."""

    def __init__(self) -> None:
        self.tools: Sequence[ListedTool] = (mcp_tool("find"), mcp_tool("pay"))
        self.targets: list[McpTarget] = []
        self.calls: list[McpCall] = []
        self.outcomes: list[Outcome] = []
        self.listing_error: McpError | None = None
        self.while_calling: Callable[[OnProgress | None], Awaitable[None]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def programs(self) -> Sequence[str]:
        """Fulfil `McpClient.programs`."""
        return ("files",)

    async def list_tools(self, target: McpTarget, timeout_seconds: float) -> McpListing:
        """Fulfil `McpClient.list_tools`."""
        assert timeout_seconds > 0
        self.targets.append(target)
        if self.listing_error:
            raise self.listing_error
        return McpListing("2026-07-28", "fake", "1", self.tools)

    async def authorize(
        self, authorization: McpAuthorization, timeout_seconds: float
    ) -> McpGranted:
        """Fulfil `McpClient.authorize`."""
        assert timeout_seconds > 0
        return McpGranted(
            {"tokens": {"access_token": "token"}, "expires_at": None, "state": "state"},
            str(authorization.redirect_uri),
        )

    async def call(
        self, call: McpCall, on_progress: OnProgress | None = None
    ) -> McpResult | McpQuestion:
        """Fulfil `McpClient.call`."""
        self.calls.append(call)
        if self.while_calling:
            await self.while_calling(on_progress)
        outcome = self.outcomes.pop(0) if self.outcomes else McpResult(is_error=False, text="done")
        if isinstance(outcome, McpError):
            raise outcome
        return outcome

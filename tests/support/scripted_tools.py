"""A model that calls tools by a script, and a runner that does what a test says."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import anyio

from app.services.ports import (
    ChatFinished,
    ChatItem,
    ChatRequest,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
)
from app.services.tool_ports import (
    AgentTools,
    Approval,
    Effect,
    PinnedTool,
    ToolCallRequest,
    ToolKind,
    ToolOutcome,
    ToolPolicy,
    ToolResult,
)

Said = str | tuple[str, str] | ReasoningDelta
"""Text, a call of a tool with its arguments, or thoughts."""


class ScriptedChatModel:
    """Gives one answer of `script` after the other, then "Done."; remembers every request."""

    context_tokens = 8000

    def __init__(self, *script: Sequence[Said]) -> None:
        self.script: Sequence[Sequence[Said]] = script
        self.requests: list[ChatRequest] = []
        self.while_thinking: Callable[[int], Awaitable[None]] | None = None
        """Called with the number of the request, from 1 on."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:
        """Fulfil `ChatModel.stream`."""
        self.requests.append(request)
        if self.while_thinking:
            await self.while_thinking(len(self.requests))
        answer: Sequence[Said] = ("Done.",)
        if self.script:
            answer, *rest = self.script
            self.script = rest
        index = 0
        for said in answer:
            await anyio.lowlevel.checkpoint()
            match said:
                case str():
                    yield TextDelta(said)
                case (name, arguments):
                    call_id = f"call-{len(self.requests)}-{index}"
                    yield ToolCallDelta(index, call_id, name, arguments[:3])
                    yield ToolCallDelta(index, call_id, name, arguments[3:])
                    index += 1
                case ReasoningDelta():
                    yield said
        reason = FinishReason.TOOL_CALLS if index else FinishReason.STOP
        yield ChatFinished(reason, "fake-1", 10, 0, 5)


class ScriptedRunner:
    """Answers each call with `answers`, by the tool's name; remembers every call."""

    def __init__(self) -> None:
        self.calls: list[ToolCallRequest] = []
        self.ended: list[UUID] = []
        self.answers: dict[str, ToolResult] = {}
        self.while_running: Callable[[ToolCallRequest], Awaitable[None]] | None = None
        self.problems: dict[str, str] = {}
        """What is wrong with arguments, by the arguments."""

    async def run(self, call: ToolCallRequest) -> ToolResult:
        """Fulfil `ToolRunner.run`."""
        self.calls.append(call)
        if self.while_running:
            await self.while_running(call)
        self.ended.append(call.id)
        name = call.tool.definition.name
        return self.answers.get(name, ToolResult(ToolOutcome.COMPLETED, f"result of {name}"))

    def problem_of(self, tool: PinnedTool, arguments: str) -> str | None:
        """Fulfil `ToolRunner.problem_of`."""
        del tool
        return self.problems.get(arguments)


def pinned(
    name: str,
    effect: Effect = Effect.READ,
    *,
    kind: ToolKind = ToolKind.HTTP,
    approval: Approval = Approval.NEVER,
    **more: Any,
) -> PinnedTool:
    """Return a tool that takes any object."""
    return PinnedTool(
        definition=ToolDefinition(name, f"Does {name}.", {"type": "object"}),
        tool_id=UUID(int=sum(name.encode())),
        version=1,
        kind=kind,
        effect=effect,
        approval=approval,
        **more,
    )


def tool_body(tool: PinnedTool) -> dict[str, Any]:
    """Return the body of `POST /tools` for a tool."""
    body: dict[str, Any] = {
        "name": tool.definition.name,
        "description": tool.definition.description,
        "parameters": tool.definition.parameters,
        "kind": tool.kind.value,
        "effect": tool.effect.value,
        "approval": tool.approval.value,
        "approval_by": tool.approval_by.value,
        "trusted": tool.is_trusted,
        "price_usd": tool.price_usd,
    }
    if tool.kind is ToolKind.HTTP:
        body["http"] = {"method": "POST", "url": "https://tools.example/run"}
    return body


def agent_tools(*tools: PinnedTool, policy: ToolPolicy | None = None) -> AgentTools:
    """Return the tools of an agent."""
    by_name = {tool.definition.name: tool for tool in sorted(tools, key=_name)}
    definitions = tuple(tool.definition for tool in by_name.values())
    return AgentTools(by_name, policy or ToolPolicy(), definitions)


def _name(tool: PinnedTool) -> str:
    return tool.definition.name

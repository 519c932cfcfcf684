"""Ports for tools: what an agent may use, one call, and the result that the model sees.

The turn engine knows tools by these alone; `services.tools` and adapters fulfil them.
"""

from collections.abc import Callable, Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from app.core.value_objects import value_object
from app.services.ports import ToolDefinition


class ToolKind(StrEnum):
    """Who runs a tool."""

    HTTP = "http"
    """This server calls a URL."""
    MCP = "mcp"
    """An MCP server does it."""
    CLIENT = "client"
    """The caller's own code runs it and sends the output."""
    BUILTIN = "builtin"
    """This server does it itself."""


class Effect(StrEnum):
    """What running a call again would do, as the tool's owner declares."""

    READ = "read"
    """Nothing."""
    IDEMPOTENT = "idempotent"
    """Nothing new with the same key."""
    ONCE = "once"
    """Harm: it is never run again."""


class Approval(StrEnum):
    """When a call needs somebody's approval."""

    NEVER = "never"
    ALWAYS = "always"
    AFTER_UNTRUSTED = "after_untrusted"
    """Once the turn's prompt holds the result of a tool that is not trusted."""


class ApprovalBy(StrEnum):
    """Who may approve a call."""

    OPERATOR = "operator"
    USER = "user"


class OnUnknown(StrEnum):
    """What becomes of a turn whose `once` call has an unknown outcome."""

    FAIL = "fail"
    TELL = "tell"
    """The model is told, and the turn goes on."""


@value_object(frozen=True, slots=True)
class HttpCall:
    """How a tool of the kind `http` is called; texts are templates."""

    method: str
    url: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any] | None
    """Fixed members of the JSON body; `None` where there are none."""
    select: str | None
    """A JSON Pointer to the part of the answer that is the result; `None` for all of it."""
    secret_names: tuple[str, ...]


@value_object(frozen=True, slots=True)
class McpReference:
    """A tool of an MCP server, at the definition that was accepted."""

    server_id: UUID
    name: str
    """Its name at the server."""
    sha256: str
    """Of the definition."""


@value_object(frozen=True, slots=True)
class PinnedTool:
    """A tool at the version that an agent's version holds."""

    definition: ToolDefinition
    tool_id: UUID
    version: int
    kind: ToolKind
    effect: Effect
    approval: Approval
    approval_by: ApprovalBy = ApprovalBy.OPERATOR
    approval_expires_seconds: float = 86_400
    expires_seconds: float = 600
    """How long the output of a `client` tool is waited for."""
    timeout_seconds: float = 30
    """Of one call."""
    max_result_bytes: int = 16_384
    """The longest result that the model is shown."""
    is_trusted: bool = True
    price_usd: float | None = None
    """Of one call."""
    http: HttpCall | None = None
    """Set for the kind `http`."""
    mcp: McpReference | None = None
    """Set for the kind `mcp`."""
    output_schema: Mapping[str, Any] | None = None
    """JSON Schema of what comes back for the kind `client`, or of a structured result of `mcp`."""

    def needs_approval(self, *, is_tainted: bool) -> bool:
        """Tell whether a call must be approved; `is_tainted` after untrusted results."""
        return self.approval is Approval.ALWAYS or (
            self.approval is Approval.AFTER_UNTRUSTED and is_tainted
        )


@value_object(frozen=True, slots=True)
class ToolPolicy:
    """Limits of the steps and calls of one turn."""

    max_steps: int = 8
    max_calls: int = 32
    max_parallel: int = 4
    max_usd_per_turn: float | None = None
    on_unknown: OnUnknown = OnUnknown.FAIL
    spoken_filler: str | None = None


@value_object(frozen=True, slots=True)
class AgentTools:
    """The tools of one agent version, by name, sorted; never empty."""

    tools: Mapping[str, PinnedTool]
    policy: ToolPolicy
    definitions: tuple[ToolDefinition, ...]
    """Of `tools`, in the order of their names: a changed byte costs the provider's prompt cache."""


@value_object(frozen=True, slots=True)
class ToolProgress:
    """How far a call is."""

    progress: float
    total: float | None
    message: str | None


@value_object(frozen=True, slots=True)
class ToolQuestion:
    """What an MCP server asks before a call goes on."""

    message: str
    form: Mapping[str, Any] | None
    """JSON Schema of the answer; `None` where a page is to be visited."""
    url: str | None
    """Of the page; it is shown, and never opened."""
    state: Mapping[str, Any]
    """What goes back to the server with the answer; for nobody else."""


@value_object(frozen=True, slots=True)
class ToolCallRequest:
    """One call of a tool. `id` is also its idempotency key at whoever is called."""

    id: UUID
    workspace_id: UUID
    session_id: UUID | None
    """`None` for a test of the tool, outside of a turn; likewise the turn and the agent."""
    turn_id: UUID | None
    agent_id: UUID | None
    user_id: str | None
    tool: PinnedTool
    arguments: str
    """A JSON object that the tool's schema allows."""
    attempt: int = 1
    traceparent: str | None = None
    """W3C Trace Context, for whoever is called."""
    question: ToolQuestion | None = None
    """What was asked, where the call goes on with an answer."""
    answer: Mapping[str, Any] | None = None
    """`action` (`accept`, `decline` or `cancel`), and `content` where it is accepted."""
    on_progress: Callable[[ToolProgress], None] | None = field(
        default=None, repr=False, compare=False
    )


class ToolOutcome(StrEnum):
    """How a call ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """It was sent, and nobody can tell whether it was done."""
    ASKS = "asks"
    """It goes on once somebody has answered."""


@value_object(frozen=True, slots=True)
class ToolFile:
    """An image of a result."""

    media_type: str
    data: bytes
    width: int
    height: int


@value_object(frozen=True, slots=True)
class ToolResult:
    """The end of a call."""

    outcome: ToolOutcome
    text: str
    """What the model is shown, at most `max_result_bytes` long."""
    stored_text: str | None = None
    """The longer result that is kept for `GET /tool-calls/{id}`, up to 256 KB; `None`: `text`."""
    error_code: str | None = None
    """One of the documented codes of calls, unless it is completed."""
    error_detail: str | None = None
    """For clients; without what the tool answered."""
    was_sent: bool = False
    """True if the request, or a part of it, may have left the server."""
    http_status: int | None = None
    """Of the answer, if one came."""
    duration_ms: float = 0
    files: tuple[ToolFile, ...] = ()
    question: ToolQuestion | None = None
    """Set where the call asks."""


class ToolRunner(Protocol):
    """Port of running calls of `http` and `mcp` tools."""

    async def run(self, call: ToolCallRequest) -> ToolResult:
        """Run one call within the tool's timeout. Never raises for what the tool does.

        Safe to cancel: the request is broken off. `UNKNOWN` is returned where the connection broke,
        or the time was over, after the request was sent; `FAILED` where nothing was sent.
        """
        ...

    def problem_of(self, tool: PinnedTool, arguments: str) -> str | None:
        """Return what is wrong with the arguments, in one sentence for the model, or `None`."""
        ...

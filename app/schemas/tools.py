"""Schemas of tools, and of what agents set about them."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from app.schemas.base import Changes, NonBlank, Request, Response, Text, storable_json

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Description = Annotated[NonBlank, StringConstraints(max_length=1024)]
Template = Annotated[Text, StringConstraints(max_length=8192)]
JsonObject = Annotated[dict[str, Any], AfterValidator(storable_json)]
Effect = Literal["read", "idempotent", "once"]
Approval = Literal["never", "always", "after_untrusted"]
Approver = Literal["operator", "user"]
Seconds = Annotated[float, Field(ge=1, le=300)]
ApprovalSeconds = Annotated[int, Field(ge=60, le=30 * 86_400)]
OutputSeconds = Annotated[int, Field(ge=10, le=86_400)]
ResultBytes = Annotated[int, Field(ge=256, le=65_536)]
Price = Annotated[float, Field(ge=0, le=1000)]
Schema = JsonObject


class HttpDefinition(Request):
    """How this server calls the tool."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    url: Annotated[Text, StringConstraints(max_length=2048)] = Field(
        description="`{name}` stands for an argument, in path and query only.",
        examples=["https://api.example.com/orders/{number}"],
    )
    headers: Annotated[dict[str, Template], Field(max_length=50)] = Field(
        default_factory=dict[str, str],
        examples=[{"Authorization": "Bearer {{secrets.SHOP_KEY}}", "X-User": "{{user.id}}"}],
    )
    query: Annotated[dict[Text, Template], Field(max_length=50)] = Field(
        default_factory=dict[str, str],
        description="Fixed parameters of the query; the model neither sees nor overrides them.",
    )
    body: JsonObject | None = Field(
        default=None, description="Fixed members of the JSON body, likewise."
    )
    select: Annotated[Text, StringConstraints(max_length=500)] | None = Field(
        default=None, description="A JSON Pointer to the part of the answer that is the result."
    )


def _no_parameters() -> dict[str, Any]:
    return {"type": "object", "properties": {}, "additionalProperties": False}


class ToolCreate(Request):
    """A new tool. Omitted fields have the defaults that are shown."""

    name: ToolName = Field(examples=["get_order"])
    description: Description = Field(
        description="Tells the model what the tool does and when to use it.",
        examples=["Looks up an order by its number."],
    )
    kind: Literal["http", "client"]
    parameters: Schema = Field(
        default_factory=_no_parameters, description="JSON Schema of the arguments."
    )
    output_schema: Schema | None = Field(
        default=None, description="JSON Schema of a client's output."
    )
    http: HttpDefinition | None = None
    effect: Effect | None = Field(
        default=None,
        description="What running a call again would do: nothing (`read`), nothing new with the "
        "same key (`idempotent`), or harm (`once`). By default `read` for GET and HEAD, else "
        "`once`.",
    )
    approval: Approval | None = Field(
        default=None,
        description="When a call must be approved. By default `after_untrusted` for `once`, else "
        "`never`.",
    )
    approval_by: Approver = "operator"
    approval_expires_seconds: ApprovalSeconds = 86_400
    expires_seconds: OutputSeconds = Field(
        default=600, description="How long a client may take to give the output."
    )
    timeout_seconds: Seconds = 30
    max_result_bytes: ResultBytes = Field(
        default=16_384, description="Of a result that the model sees; it is cut in the middle."
    )
    trusted: bool = Field(
        default=True, description="False where strangers may write what the tool returns."
    )
    price_usd: Price | None = Field(default=None, description="Of one call.")


class ToolUpdate(Changes):
    """Any subset of a tool's fields; `null` resets a field that can be `null`."""

    name: ToolName = Field(default="", validate_default=False)
    description: Description = Field(default="", validate_default=False)
    parameters: Schema = Field(default_factory=_no_parameters, validate_default=False)
    output_schema: Schema | None = None
    http: HttpDefinition | None = None
    effect: Effect | None = None
    approval: Approval | None = None
    approval_by: Approver = "operator"
    approval_expires_seconds: ApprovalSeconds = 86_400
    expires_seconds: OutputSeconds = 600
    timeout_seconds: Seconds = 30
    max_result_bytes: ResultBytes = 16_384
    trusted: bool = True
    price_usd: Price | None = None


class HttpRead(Response):
    """How this server calls the tool; secrets are names in templates."""

    method: str
    url: str
    headers: dict[str, str]
    query: dict[str, str]
    body: dict[str, Any] | None
    select: str | None


class McpToolReference(Response):
    """The tool of an MCP server that it is."""

    server_id: UUID
    tool: str
    sha256: str = Field(description="Of the definition that was accepted.")


class ToolDefinitionRead(Response):
    """A tool at one version; `effect` and `approval` with their defaults."""

    version: int
    name: str
    description: str
    kind: Literal["http", "mcp", "client"]
    parameters: dict[str, Any]
    output_schema: dict[str, Any] | None
    http: HttpRead | None
    mcp: McpToolReference | None = None
    effect: Effect
    approval: Approval
    approval_by: Approver
    approval_expires_seconds: int
    expires_seconds: int
    timeout_seconds: float
    max_result_bytes: int
    trusted: bool
    price_usd: float | None
    created_at: datetime


class ToolRead(ToolDefinitionRead):
    """A tool at its newest version."""

    id: UUID
    updated_at: datetime
    archived_at: datetime | None


class ToolWithSecret(ToolRead):
    """A new tool with the secret that signs its requests, which is shown only once."""

    signing_secret: str = Field(description="`whsec_...`, as in Standard Webhooks.")


class ToolVersionRead(ToolDefinitionRead):
    """A tool at an earlier or its newest version."""

    tool_id: UUID


class ToolTest(Request):
    """Arguments for one call outside of a turn."""

    arguments: JsonObject = Field(default_factory=dict[str, Any])
    user_id: Annotated[NonBlank, StringConstraints(max_length=200)] | None = Field(
        default=None, description="Stands for `{{user.id}}`."
    )
    confirm: bool = Field(default=False, description="Needed for tools whose effect is `once`.")


class SentRequest(Response):
    """The request as it was sent, with secrets replaced by their names."""

    method: str
    url: str
    headers: dict[str, str]
    body: str | None


class CallError(Response):
    """Why a call failed; `code` is one of the documented codes of calls."""

    code: str
    detail: str


class ToolTestRead(Response):
    """What one call did, and what a model would see of its result."""

    status: Literal["completed", "failed", "unknown"]
    request: SentRequest | None
    http_status: int | None
    result: str
    error: CallError | None
    duration_ms: float


class ExactTool(Request):
    """A tool at an exact version."""

    tool_id: UUID
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]


class AgentToolRef(Request):
    """A tool that an agent has, or tools of an MCP server."""

    tool_id: UUID | None = None
    mcp_server_id: UUID | None = Field(
        default=None, description="Instead of `tool_id`: tools of this server."
    )
    names: (
        Annotated[list[Annotated[Text, StringConstraints(max_length=200)]], Field(max_length=512)]
        | None
    ) = Field(
        default=None,
        description="Names at the MCP server; by default all that are accepted, now and later.",
    )
    tools: Annotated[list[ExactTool], Field(max_length=1000)] | None = Field(
        default=None, description="What an agent was read with; the newest are taken."
    )
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="By default the newest; a change of the tool moves it on."
    )
    approval: Approval | None = Field(
        default=None, description="When this agent's calls must be approved; by default the tool's."
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        of_server = (self.names, self.tools)
        if (self.tool_id is None) == (self.mcp_server_id is None):
            raise ValueError("must have either `tool_id` or `mcp_server_id`")
        if self.tool_id is not None and any(each is not None for each in of_server):
            raise ValueError("`names` and `tools` are for an MCP server")
        if self.mcp_server_id is not None and self.version is not None:
            raise ValueError("`version` is for a single tool")
        return self


class ExactToolRead(Response):
    """A tool at an exact version."""

    tool_id: UUID
    version: int


class AgentToolRead(Response):
    """A tool that an agent has, at an exact version, or tools of an MCP server."""

    tool_id: UUID
    version: int
    approval: Approval | None


class AgentMcpToolsRead(Response):
    """Tools of an MCP server that an agent has, at exact versions."""

    mcp_server_id: UUID
    names: list[str] | None
    approval: Approval | None
    tools: list[ExactToolRead]


def _different(tools: list[AgentToolRef]) -> list[AgentToolRef]:
    if len({each.tool_id or each.mcp_server_id for each in tools}) < len(tools):
        raise ValueError("must not name a tool or an MCP server twice")
    return tools


AgentToolRefs = Annotated[list[AgentToolRef], Field(max_length=1000), AfterValidator(_different)]


class ToolPolicyFields(Request):
    """The limits of an agent's turns with tools."""

    max_steps: Annotated[int, Field(ge=1, le=32)] = Field(
        default=8, description="Answers of the model in one turn."
    )
    max_calls: Annotated[int, Field(ge=1, le=128)] = 32
    max_parallel: Annotated[int, Field(ge=1, le=8)] = 4
    max_usd_per_turn: Annotated[float, Field(gt=0, le=1000)] | None = None
    on_unknown: Literal["fail", "tell"] = Field(
        default="fail",
        description="When it is not known whether a `once` call was done: fail the turn, or tell "
        "the model.",
    )
    spoken_filler: Annotated[NonBlank, StringConstraints(max_length=200)] | None = Field(
        default=None, description="Spoken while a call takes long."
    )


class ToolPolicyRead(Response):
    """The limits of an agent's turns with tools."""

    max_steps: int
    max_calls: int
    max_parallel: int
    max_usd_per_turn: float | None
    on_unknown: Literal["fail", "tell"]
    spoken_filler: str | None


class ToolImport(Request):
    """An OpenAPI document, and which of its operations become tools."""

    openapi: JsonObject = Field(description="OpenAPI 3.0 or 3.1, as JSON of at most 1 MB.")
    include: Annotated[list[Text], Field(max_length=64)] | None = Field(
        default=None, description="Ids of operations; by default all, at most 64."
    )
    base_url: Annotated[Text, StringConstraints(max_length=1000)] | None = Field(
        default=None, description="By default the document's first server."
    )
    headers: Annotated[dict[str, Template], Field(max_length=50)] = Field(
        default_factory=dict[str, str], description="Of each tool, such as its key."
    )
    dry_run: bool = Field(default=True, description="Only show what would be created.")


class ImportedTool(Response):
    """An operation, and the tool that it becomes."""

    operation_id: str
    definition: ToolCreate | None = Field(description="`null` where it cannot become a tool.")
    problem: str | None = Field(description="Why it cannot.")
    tool_id: UUID | None = Field(description="`null` in a dry run.")
    signing_secret: str | None = Field(description="Shown only once; `null` in a dry run.")


class ToolImportRead(Response):
    """What was created, or would be."""

    dry_run: bool
    tools: list[ImportedTool]

"""Schemas of MCP servers and the tools that they list."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from app.schemas.base import Changes, Request, Response, Text
from app.schemas.secrets import SECRET_NAME
from app.schemas.tools import Approval, Effect, Seconds, Template

ServerName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,32}$")]
ServerUrl = Annotated[Text, StringConstraints(max_length=2048)]
ProgramName = Annotated[Text, StringConstraints(max_length=64)]
Headers = Annotated[dict[str, Template], Field(max_length=50)]
AllowedTools = Annotated[
    list[Annotated[Text, StringConstraints(max_length=200)]], Field(max_length=512)
]


SecretName = Annotated[str, StringConstraints(pattern=SECRET_NAME)]
OAuthText = Annotated[Text, StringConstraints(min_length=1, max_length=1024)]


class McpOAuthSettings(Request):
    """How access tokens are got for a server that wants OAuth."""

    grant: Literal["client_credentials", "authorization_code"] = Field(
        description="As this server itself, or as a person who once visits a page."
    )
    client_id: OAuthText | None = Field(
        default=None,
        description="Without it, which `authorization_code` allows, a client is registered.",
    )
    client_secret: SecretName | None = Field(
        default=None,
        description="The name of a secret whose hosts are those of issuer and token endpoint.",
        examples=["SHOP_CLIENT_SECRET"],
    )
    client_auth: Literal["client_secret_basic", "client_secret_post"] = Field(
        default="client_secret_basic", description="How the secret is sent."
    )
    issuer: ServerUrl | None = Field(
        default=None,
        description="Of the authorization server that knows `client_id`, as it names itself.",
        examples=["https://auth.example.com"],
    )
    scope: OAuthText | None = Field(
        default=None, description="Separated by spaces; by default what the server asks for."
    )


class McpServerCreate(Request):
    """A new MCP server; it is connected to, and its tools are listed."""

    name: ServerName = Field(
        description="Its tools are called `{name}__{tool}`.", examples=["github"]
    )
    url: ServerUrl | None = Field(
        default=None,
        description="Of its endpoint for streamable HTTP.",
        examples=["https://mcp.example.com/mcp"],
    )
    program: ProgramName | None = Field(
        default=None, description="Instead: a program in the operator's `MCP_SERVERS_FILE`."
    )
    headers: Headers = Field(
        default_factory=dict[str, str],
        examples=[{"Authorization": "Bearer {{secrets.GITHUB_TOKEN}}"}],
    )
    oauth: McpOAuthSettings | None = Field(
        default=None,
        description="With `authorization_code` it is listed once a person has authorized this "
        "server: `POST /mcp-servers/{id}/authorization`.",
    )
    allowed_tools: AllowedTools | None = Field(
        default=None, description="Tools that are kept of what it lists; by default all."
    )
    effect: Effect = Field(
        default="once",
        description="Of tools that are accepted from now on; each can be changed by itself.",
    )
    approval: Approval | None = Field(
        default=None, description="Likewise; by default `after_untrusted` for `once`, else `never`."
    )
    timeout_seconds: Seconds = Field(default=30, description="Of one call; likewise.")
    auto_accept: bool = Field(
        default=False, description="Accept every definition that it lists, unseen."
    )


class McpServerUpdate(Changes):
    """Any subset of a server's fields but its name; `null` resets what can be `null`."""

    url: ServerUrl | None = None
    program: ProgramName | None = None
    headers: Headers = Field(default_factory=dict[str, str])
    oauth: McpOAuthSettings | None = None
    allowed_tools: AllowedTools | None = None
    effect: Effect = "once"
    approval: Approval | None = None
    timeout_seconds: Seconds = 30
    auto_accept: bool = False


class McpToolRead(Response):
    """A tool as the server lists it."""

    name: str = Field(description="At the server.")
    tool_name: str | None = Field(description="What models call it; `null` until it is accepted.")
    tool_id: UUID | None
    status: Literal["accepted", "pending", "changed", "unusable", "removed"]
    problem: str | None = Field(description="Why it cannot be accepted.")
    description: str
    parameters: dict[str, Any]
    output_schema: dict[str, Any] | None
    hints: dict[str, bool] = Field(
        description="What the server says about effects: a proposal, which nothing follows from."
    )
    sha256: str = Field(description="Of name, description and schemas.")


class McpOAuthRead(Response):
    """How access tokens are got; the tokens are never shown."""

    grant: Literal["client_credentials", "authorization_code"]
    client_id: str | None
    client_secret: str | None = Field(description="The name of a secret.")
    client_auth: Literal["client_secret_basic", "client_secret_post"]
    issuer: str | None
    scope: str | None


class McpServerSummary(Response):
    """An MCP server without its tools."""

    id: UUID
    name: str
    url: str | None
    program: str | None
    headers: dict[str, str]
    oauth: McpOAuthRead | None
    allowed_tools: list[str] | None
    effect: Effect
    approval: Approval | None
    timeout_seconds: float
    auto_accept: bool
    protocol_version: str
    server_name: str
    server_version: str
    created_at: datetime
    updated_at: datetime
    listed_at: datetime


class McpServerRead(McpServerSummary):
    """An MCP server with the tools that it lists, or has listed."""

    tools: list[McpToolRead]


class McpServerRefreshed(McpServerRead):
    """A server after its tools were listed again, and what was different: names at the server."""

    added: list[str]
    changed: list[str]
    removed: list[str]


class McpToolAccept(Request):
    """Which definition is accepted."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Of the definition that was looked at; by default the newest."
    )


class McpAuthorizationBegin(Request):
    """Where the authorization server sends the person back to."""

    redirect_uri: ServerUrl = Field(
        description="A page of yours, which passes `code`, `state` and `iss` on.",
        examples=["https://console.example.com/mcp/callback"],
    )


class McpAuthorizationBegun(Response):
    """The page that a person is to visit."""

    authorization_url: str
    expires_at: datetime


class McpAuthorizationFinish(Request):
    """What the authorization server added to the `redirect_uri`."""

    code: OAuthText
    state: OAuthText
    iss: OAuthText | None = None

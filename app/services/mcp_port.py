"""Port of MCP servers: their tools, and calls of these; `services/mcp_service` fulfils it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from app.core.value_objects import value_object

PROTOCOL_VERSIONS = ("2026-07-28", "2025-11-25")
"""The newest of each era; older ones of the second are spoken, too."""


@value_object(frozen=True, slots=True)
class McpTarget:
    """An MCP server and how it is reached: by `url`, or as a program of the operator's."""

    workspace_id: UUID
    """Whose calls these are: workspaces share no connection."""
    url: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """Of every request, with secrets filled in."""
    program: str | None = None
    """The name of a program in the operator's file."""


@value_object(frozen=True, slots=True)
class ListedTool:
    """A tool as its server defines it; nothing of it is checked."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    hints: Mapping[str, bool]
    """What the server says about effects, such as `readOnlyHint`."""


@value_object(frozen=True, slots=True)
class McpListing:
    """What a server offers."""

    protocol_version: str
    server_name: str
    server_version: str
    tools: Sequence[ListedTool]


@value_object(frozen=True, slots=True)
class McpAnswer:
    """What somebody answered to a question of a server."""

    action: str
    """`accept`, `decline` or `cancel`."""
    content: Mapping[str, Any] | None = None
    """The fields of the form, where it was accepted."""


@value_object(frozen=True, slots=True)
class McpCall:
    """One call of a tool."""

    id: UUID
    target: McpTarget
    tool: str
    """Its name at the server."""
    arguments: Mapping[str, Any]
    timeout_seconds: float
    max_bytes: int
    """Of all that the server answers, unless it has an image."""
    max_image_bytes: int
    """Of an answer with an image, as it is sent."""
    meta: Mapping[str, str]
    """What goes with the call as `_meta`."""
    question: Mapping[str, Any] | None = None
    """The question that `answer` answers, as it was in `McpQuestion.state`."""
    answer: McpAnswer | None = None


@value_object(frozen=True, slots=True)
class McpResult:
    """The end of a call that the server answered."""

    is_error: bool
    text: str
    """JSON where the result is structured."""
    structured: Any = None
    """The structured result; `None` where there is none."""
    images: Sequence[bytes] = field(default=(), repr=False)
    """At most 4; nothing of them is checked."""


@value_object(frozen=True, slots=True)
class McpQuestion:
    """What a server asks before a call goes on."""

    message: str
    form: Mapping[str, Any] | None
    """JSON Schema of the answer; `None` where a page is to be visited."""
    url: str | None
    state: Mapping[str, Any]
    """What goes back with the answer."""


@value_object(frozen=True, slots=True)
class McpProgress:
    """How far a call is."""

    progress: float
    total: float | None
    message: str | None


@value_object(frozen=True, slots=True)
class McpOAuth:
    """The OAuth client that acts for a workspace, with the secret filled in."""

    grant: str
    """`client_credentials` or `authorization_code`."""
    client_id: str | None
    """`None`: a client is registered at the authorization server."""
    client_secret: str | None = field(repr=False)
    secret_hosts: Sequence[str]
    """Where the secret may go."""
    client_auth: str
    """How the secret is sent: `client_secret_basic` or `client_secret_post`."""
    issuer: str | None
    """Of the authorization server that the client is registered at."""
    scope: str | None


@value_object(frozen=True, slots=True)
class McpAuthorization:
    """A step on the way to an access token."""

    target: McpTarget
    oauth: McpOAuth
    step: str
    """`begin` and `finish` of an authorization by a person, or `renew`."""
    grant: Mapping[str, Any] | None = field(default=None, repr=False)
    """What the step before returned."""
    redirect_uri: str | None = None
    """Where the person is sent at the end, for `begin`."""
    code: str | None = field(default=None, repr=False)
    issuer: str | None = None
    """What came back with the person, for `finish`: `iss` may be missing."""


@value_object(frozen=True, slots=True)
class McpGranted:
    """The end of a step."""

    grant: Mapping[str, Any] = field(repr=False)
    """Opaque but for `tokens` (with `access_token`), `expires_at` (POSIX time) and `state`."""
    url: str | None = None
    """Of the page that a person is to visit."""


class McpFailure(StrEnum):
    """Why there is no answer that can be used."""

    ADDRESS_NOT_ALLOWED = "address-not-allowed"
    UNREACHABLE = "unreachable"
    """Not resolved, refused, or no valid certificate."""
    UNAUTHORIZED = "unauthorized"
    INCOMPATIBLE = "incompatible"
    """It speaks no version of the protocol that this server knows."""
    REFUSED = "refused"
    """It answered, but with an error, a redirect, or what is not MCP."""
    TOO_LARGE = "too-large"
    BROKEN = "broken"
    """The connection, or the process that reads what servers send, ended."""
    TIMEOUT = "timeout"
    BUSY = "busy"
    """Too many calls of the workspace, or of all, wait."""
    UNAVAILABLE = "unavailable"
    """This server cannot speak MCP: a package is missing, or the process does not start."""


class McpError(Exception):
    """A server gave no result; the message names no host, and has none of its words."""

    def __init__(
        self, failure: McpFailure, message: str, *, was_sent: bool = False, answer: str = ""
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.was_sent = was_sent
        """True if the call, or a part of it, may have left this server."""
        self.answer = answer
        """What the server said, at most 2 KB, for models alone."""


OnProgress = Callable[[McpProgress], None]


class McpClient(Protocol):
    """Speaks to MCP servers."""

    async def list_tools(self, target: McpTarget, timeout_seconds: float) -> McpListing:
        """Connect and list the server's tools. Raises `McpError`."""
        ...

    async def call(
        self, call: McpCall, on_progress: OnProgress | None = None
    ) -> McpResult | McpQuestion:
        """Call a tool. Raises `McpError`. Cancelled, the server is told."""
        ...

    async def authorize(
        self, authorization: McpAuthorization, timeout_seconds: float
    ) -> McpGranted:
        """Do a step of OAuth with a server that has a `url`. Raises `McpError`."""
        ...

    def programs(self) -> Sequence[str]:
        """Return the names of the operator's programs."""
        ...

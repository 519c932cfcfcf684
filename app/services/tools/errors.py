"""Errors of tools and secrets.

The first line of an error's docstring is the title in the response.
"""

from app.core.errors import AppError, ErrorKind


class ToolNotFound(AppError):
    """The tool does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "tool-not-found"


class McpServerNotFound(AppError):
    """The MCP server does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "mcp-server-not-found"


class McpToolNotFound(AppError):
    """The MCP server lists no such tool."""

    kind = ErrorKind.NOT_FOUND
    code = "mcp-tool-not-found"


class McpServerNameTaken(AppError):
    """Another MCP server has this name."""

    kind = ErrorKind.CONFLICT
    code = "mcp-server-name-taken"


class McpServerInUse(AppError):
    """An agent has tools of the MCP server."""

    kind = ErrorKind.CONFLICT
    code = "mcp-server-in-use"


class McpUnreachable(AppError):
    """The MCP server cannot be reached."""

    kind = ErrorKind.INVALID
    code = "mcp-unreachable"


class McpUnauthorized(AppError):
    """The MCP server refuses the credentials."""

    kind = ErrorKind.INVALID
    code = "mcp-unauthorized"


class McpIncompatible(AppError):
    """The MCP server does not speak the protocol."""

    kind = ErrorKind.INVALID
    code = "mcp-incompatible"


class McpBusy(AppError):
    """Too many requests of MCP servers wait."""

    kind = ErrorKind.TOO_MANY
    code = "mcp-busy"


class McpUnavailable(AppError):
    """This server cannot speak MCP."""

    kind = ErrorKind.UNAVAILABLE
    code = "mcp-unavailable"


class ToolNameTaken(AppError):
    """Another tool has this name."""

    kind = ErrorKind.CONFLICT
    code = "tool-name-taken"


class ToolInUse(AppError):
    """An agent has the tool."""

    kind = ErrorKind.CONFLICT
    code = "tool-in-use"


class ToolArchived(AppError):
    """The tool is archived."""

    kind = ErrorKind.CONFLICT
    code = "tool-archived"


class ToolInvalid(AppError):
    """The tool's definition is not valid."""

    kind = ErrorKind.INVALID
    code = "tool-invalid"


class ToolNotTestable(AppError):
    """The tool cannot be tested like this."""

    kind = ErrorKind.INVALID
    code = "tool-not-testable"


class ToolOutputInvalid(AppError):
    """The output breaks the tool's schema."""

    kind = ErrorKind.INVALID
    code = "tool-output-invalid"


class TooManyTools(AppError):
    """The agent has too many tools."""

    kind = ErrorKind.INVALID
    code = "too-many-tools"


class SchemaNotSupported(AppError):
    """The JSON Schema is not supported."""

    kind = ErrorKind.INVALID
    code = "schema-not-supported"


class AddressNotAllowed(AppError):
    """Requests may not go to this address."""

    kind = ErrorKind.INVALID
    code = "address-not-allowed"


class SecretNotFound(AppError):
    """The secret does not exist."""

    kind = ErrorKind.INVALID
    code = "secret-not-found"


class SecretToDeleteNotFound(SecretNotFound):
    """The secret does not exist."""

    kind = ErrorKind.NOT_FOUND


class SecretHostMismatch(AppError):
    """The secret may not be sent to this host."""

    kind = ErrorKind.INVALID
    code = "secret-host-mismatch"

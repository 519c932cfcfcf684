"""What clients are told of an MCP server that cannot be used."""

from app.core.errors import AppError
from app.services.mcp_port import McpError, McpFailure
from app.services.tools.errors import (
    AddressNotAllowed,
    McpBusy,
    McpIncompatible,
    McpUnauthorized,
    McpUnavailable,
    McpUnreachable,
)

_ERRORS: dict[McpFailure, type[AppError]] = {
    McpFailure.ADDRESS_NOT_ALLOWED: AddressNotAllowed,
    McpFailure.UNAUTHORIZED: McpUnauthorized,
    McpFailure.INCOMPATIBLE: McpIncompatible,
    McpFailure.REFUSED: McpIncompatible,
    McpFailure.TOO_LARGE: McpIncompatible,
    McpFailure.UNREACHABLE: McpUnreachable,
    McpFailure.BROKEN: McpUnreachable,
    McpFailure.TIMEOUT: McpUnreachable,
    McpFailure.BUSY: McpBusy,
    McpFailure.UNAVAILABLE: McpUnavailable,
}


def request_error(error: McpError, sentence: str) -> AppError:
    """Return the error of a request that spoke to a server; `sentence` says what was not done."""
    raised = _ERRORS[error.failure]
    wait = 5 if raised in {McpBusy, McpUnavailable} else None
    return raised(f"{sentence} {error}", retry_after_seconds=wait)

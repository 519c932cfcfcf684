"""Port of HTTP requests to addresses that users choose; `services/outbound` fulfils it."""

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Protocol

from app.core.value_objects import value_object


@value_object(frozen=True, slots=True)
class OutboundRequest:
    """A request to an address that a user chose."""

    method: str
    url: str = field(repr=False)
    """Encoded: it is sent as it is. Like headers and body it may hold secrets."""
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    timeout_seconds: float = 30
    max_bytes: int = 1 << 20
    """Of the answer's body."""
    max_image_bytes: int | None = None
    """Of the body of an answer that says that it is an image; `None`: `max_bytes`."""
    reuses_connections: bool = True
    """False for requests that must not be lost on a connection that the other side just closed."""


@value_object(frozen=True, slots=True)
class OutboundResponse:
    """An answer with its body."""

    status: int
    content_type: str
    """The header's value; empty without one."""
    body: bytes = field(repr=False)
    is_truncated: bool = False
    """True where the body was longer than the limit; the rest was not read."""


class OutboundFailure(StrEnum):
    """Why there is no answer."""

    ADDRESS_NOT_ALLOWED = "address-not-allowed"
    UNREACHABLE = "unreachable"
    """Not resolved, refused, no valid certificate, or no connection in time."""
    BROKEN = "broken"
    """The connection ended, or what came is not HTTP."""
    TIMEOUT = "timeout"
    COMPRESSED = "compressed"
    """The answer is compressed, although no compression was accepted."""


class OutboundError(Exception):
    """A request got no answer that can be used; the message names no host and no address."""

    def __init__(self, failure: OutboundFailure, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.failure = failure
        self.was_sent = was_sent
        """True if the request, or a part of it, may have left the server."""


class Outbound(Protocol):
    """Requests behind a guard of addresses."""

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        """Send `request` and read the answer; redirects are not followed. Safe to cancel.

        Raises `OutboundError`.
        """
        ...

    def refusal_of(self, url: str) -> str | None:
        """Return why `url` may not be stored, in a sentence; `None` where it may.

        Only what needs no look-up is checked: addresses instead of names, and `http`.
        """
        ...

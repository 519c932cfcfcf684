"""Which request and turn the running code works for: every log record names them.

Contexts are inherited by tasks: what a request starts has its ids. A turn has a context of its own,
since it may outlive its request, or start in the task of the turn before it.
"""

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from app.core.errors import AppError
from app.core.value_objects import value_object

_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_MAX_RECORDED_CALLS = 200


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A caller's position in a trace (W3C Trace Context)."""

    trace_id: str
    span_id: str
    flags: int


@value_object(frozen=True, slots=True)
class ProviderCall:
    """One attempt at a provider. Times are of `time.monotonic`."""

    capability: str
    host: str
    model: str | None
    attempt: int
    started_at: float
    ended_at: float
    first_item_at: float | None
    error: AppError | None = None


@dataclass(slots=True)
class RequestContext:
    """What log records and spans of one request, or of one turn, have in common."""

    request_id: str | None = None
    trace_id: str | None = None
    parent: TraceParent | None = None
    turn_id: UUID | None = None
    problem: AppError | None = None
    """The error that the request was answered with."""
    received_at: float = field(default_factory=time.monotonic)
    provider_calls: list[ProviderCall] = field(default_factory=list[ProviderCall])
    """Those that failed, and those after a failed one; with tracing, all."""

    @property
    def traceparent(self) -> str | None:
        """The header of W3C Trace Context for what is called next; `None` outside of a trace."""
        if self.trace_id is None:
            return None
        flags = self.parent.flags if self.parent else 0
        return f"00-{self.trace_id}-{secrets.token_hex(8)}-{flags:02x}"

    def add_call(self, call: ProviderCall) -> None:
        """Record an attempt at a provider."""
        if len(self.provider_calls) < _MAX_RECORDED_CALLS:
            self.provider_calls.append(call)

    def for_turn(self, turn_id: UUID) -> "RequestContext":
        """Return the context of a turn that this request asks for."""
        return RequestContext(
            self.request_id, self.trace_id, self.parent, turn_id, received_at=self.received_at
        )


_current: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)
current_context = _current.get
set_context = _current.set


def context_for_turn(turn_id: UUID) -> RequestContext:
    """Return a new context of a turn; it has the ids of the running request, if there is one."""
    current = _current.get()
    if current is None or current.turn_id is not None:  # in the task of another turn
        return RequestContext(turn_id=turn_id)
    return current.for_turn(turn_id)


def new_request_id() -> str:
    """Return an id for a request whose caller gave none."""
    return secrets.token_hex(8)


def valid_request_id(value: bytes) -> str | None:
    """Return a caller's id for a request; `None` unless it is 1 to 128 visible ASCII characters."""
    return value.decode("ascii") if _REQUEST_ID.fullmatch(value) else None


def parse_traceparent(value: bytes) -> TraceParent | None:
    """Read a `traceparent` header; `None` where it is not valid."""
    match = _TRACEPARENT.fullmatch(value) if len(value) <= 256 else None  # noqa: PLR2004
    if match is None or (match[4] and value.startswith(b"00")):
        return None
    trace_id, span_id = match[1].decode(), match[2].decode()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceParent(trace_id, span_id, int(match[3], 16))

"""The HTTP transport of MCP connections: guarded sockets, bounded answers, no redirects.

What fails is noted in the `Attempt` and answered with a made-up error status: the SDK ends a whole
connection, and every call on it, when its transport raises.
"""

import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, cast

import anyio
import httpcore2
import httpx2
from typing_extensions import override

from app.services.mcp_port import McpFailure
from app.services.mcp_service.sliced_streams import AwaitedHead, SlicingBackend, awaited_head
from app.services.outbound.addresses import Guard

_CONNECT_SECONDS = 5.0
_MOST_MESSAGES = 2000
"""Of one answer; each costs the SDK a tenth of a millisecond."""
_MOST_PIECES = 20_000
"""Of the body of one answer, such as chunks; each costs the parser as much."""
UNAUTHORIZED = (401, 403)
_UNCOMPRESSED = frozenset({"", "identity", "chunked"})
_EVENT_STREAM = "text/event-stream"
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LONGEST_END = 3
"""So many bytes before a piece may begin an end in it."""
_STANDING_STREAM_BYTES = 1 << 20
"""Of the stream on which a server of the older era sends what no call asked for."""
_SENDS = ("http11.send_request_headers.started", "http2.send_request_headers.started")

_IMAGE = re.compile(rb'"type"\s*:\s*"image"')
"""Stands in an answer with an image, usually before its data; inside of a text it is escaped."""
_large_answers = anyio.CapacityLimiter(4)

Resolve = Callable[[str, int], Any]


@dataclass(slots=True, eq=False)
class Attempt:
    """What is noted about the requests of one call."""

    max_bytes: int
    max_image_bytes: int = 0
    """Of an answer that has an image; `max_bytes` where it is less."""
    failure: McpFailure | None = None
    message: str = ""
    was_sent: bool = False
    status: int | None = None
    """Of the last answer."""
    wants_authorization: bool = False
    """True once it answered 401 or 403."""
    received_bytes: int = 0
    messages: int = 0
    is_over: bool = False
    is_large: bool = False
    """True while it is one of the few whose answers are larger than text may be."""
    pieces: int = 0
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Ends the call where nothing more is to be read."""

    def fail(self, failure: McpFailure, message: str, *, at_once: bool = False) -> None:
        """Note the first failure; `at_once` the call is not waited for any more."""
        if self.failure is None:
            self.failure, self.message = failure, message
        if at_once:
            self.scope.cancel()

    async def takes_more(self, held: Sequence[bytes]) -> bool:
        """Tell whether an answer may go on that is too large for text, by what came of it.

        Few such answers are read at once.
        """
        if self.received_bytes > self.max_image_bytes:
            return False
        if not self.is_large and any(map(_IMAGE.search, held)):
            await _large_answers.acquire_on_behalf_of(self)
            self.is_large = True
            if self.is_over:
                self.end()
        return self.is_large

    def end(self) -> None:
        """Note that the call is over; another large answer may be read."""
        self.is_over = True
        if self.is_large:
            self.is_large = False
            _large_answers.release_on_behalf_of(self)

    def fail_by_size(self) -> None:
        """Note that an answer is too large, and end the call."""
        message = f"Its answer has more than {self.max_bytes >> 20} MB, or too many messages."
        self.fail(McpFailure.TOO_LARGE, message, at_once=True)


current_attempt: ContextVar[Attempt | None] = ContextVar("mcp_attempt", default=None)


async def _resolved(host: str, port: int) -> Sequence[str]:
    found = await anyio.getaddrinfo(host, port, type=1)  # SOCK_STREAM
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that the guard allows, for URLs with `scheme`."""

    def __init__(self, guard: Guard, scheme: str, resolve: Resolve = _resolved) -> None:
        self._guard = guard
        self._scheme = scheme
        self._resolve = resolve
        self._inner = SlicingBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that is allowed and answers."""
        ends_at = time.monotonic() + (timeout or _CONNECT_SECONDS)
        try:
            with anyio.fail_after(timeout):
                addresses = await self._resolve(host, port)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise httpcore2.ConnectError("the name does not exist") from error
        refused, failure = False, None
        for address in addresses:
            allowed = self._guard.allows(
                ip_address(address), scheme=self._scheme, host=host.rstrip("."), port=port
            )
            if not allowed:
                refused = True
                continue
            try:
                left = max(0.01, ends_at - time.monotonic())
                return await self._inner.connect_tcp(
                    address, port, left, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        attempt = current_attempt.get()
        if refused and failure is None and attempt:
            attempt.fail(
                McpFailure.ADDRESS_NOT_ALLOWED,
                "Its name leads to an address that requests may not go to.",
            )
        raise failure or httpcore2.ConnectError("no address")

    @override
    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Refuse: MCP servers are reached over TCP."""
        raise httpcore2.ConnectError("no Unix sockets")

    @override
    async def sleep(self, seconds: float) -> None:
        """See httpcore."""
        await anyio.sleep(seconds)


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Sends requests of one connection over `GuardedBackend`, or through the operator's proxy."""

    def __init__(
        self,
        guard: Guard,
        scheme: str,
        tls: ssl.SSLContext,
        proxy: str | None = None,
        resolve: Resolve = _resolved,
    ) -> None:
        limits: dict[str, Any] = {
            "ssl_context": tls,
            "max_connections": 64,
            "max_keepalive_connections": 8,
            "keepalive_expiry": 5.0,
        }
        self._pool: httpcore2.AsyncConnectionPool = (
            httpcore2.AsyncHTTPProxy(proxy_url=proxy, network_backend=SlicingBackend(), **limits)
            if proxy
            else httpcore2.AsyncConnectionPool(
                network_backend=GuardedBackend(guard, scheme, resolve), **limits
            )
        )
        self._standing_attempt = Attempt(_STANDING_STREAM_BYTES)

    @override
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; every failure is an answer with a status of 500 and above."""
        attempt = self._attempt_of(request)
        if attempt.failure is not None:
            return httpx2.Response(503)
        token = awaited_head.set(AwaitedHead())
        try:
            response = await self._pool.handle_async_request(_core_request(request, attempt))
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout):
            attempt.fail(
                McpFailure.UNREACHABLE,
                "It does not accept connections, or its name does not exist.",
                at_once=attempt.was_sent,
            )
            return httpx2.Response(503)
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
            attempt.fail(McpFailure.BROKEN, "The connection ended before the answer did.")
            return httpx2.Response(503)
        except (httpcore2.ProxyError, httpcore2.UnsupportedProtocol, ssl.SSLError):
            attempt.fail(McpFailure.UNREACHABLE, "No connection was made.")
            return httpx2.Response(503)
        finally:
            awaited_head.reset(token)
        attempt.status = response.status
        attempt.wants_authorization |= response.status in UNAUTHORIZED
        headers = httpx2.Headers(response.headers)
        refusal = _refusal(response.status, headers)
        if refusal:
            attempt.fail(McpFailure.REFUSED, refusal)
        elif _announced_bytes(headers) > max(attempt.max_bytes, attempt.max_image_bytes):
            attempt.fail_by_size()
        if attempt.failure is not None:
            await response.aclose()
            return httpx2.Response(502)
        return httpx2.Response(
            response.status,
            headers=headers,
            stream=_BoundedStream(
                response,
                attempt,
                _EVENT_ENDS if headers.get("content-type", "").startswith(_EVENT_STREAM) else (),
            ),
            extensions=cast("dict[str, Any]", response.extensions),
        )

    def _attempt_of(self, request: httpx2.Request) -> Attempt:
        is_standing = request.method == "GET" and "last-event-id" not in request.headers
        attempt = None if is_standing else current_attempt.get()
        return attempt or self._standing_attempt

    @override
    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    """A body that ends, as if it were over, where it is too long or breaks.

    Its bytes are held back until one of `ends` is in them, or all of them are there: what is too
    long is thrown away here, before the SDK has made copies of it.
    """

    def __init__(
        self, response: httpcore2.Response, attempt: Attempt, ends: Sequence[bytes]
    ) -> None:
        self._response = response
        self._attempt = attempt
        self._ends = ends

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        attempt = self._attempt
        stream: Any = self._response.stream
        pieces: AsyncIterator[bytes] = stream.__aiter__()
        held: list[bytes] = []
        last = b""
        while True:
            try:
                piece = await anext(pieces)
            except StopAsyncIteration:
                break
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
                break  # cut off: what it means is decided by whether an answer was whole
            attempt.received_bytes += len(piece)
            attempt.messages += piece.count(b"data:")
            attempt.pieces += 1
            held.append(piece)
            is_large = attempt.received_bytes > attempt.max_bytes
            is_many = attempt.messages > _MOST_MESSAGES or attempt.pieces > _MOST_PIECES
            if is_many or (is_large and not await attempt.takes_more(held)):
                held.clear()
                attempt.fail_by_size()
                return
            last = last[-_LONGEST_END:] + piece
            if any(end in last for end in self._ends):
                for each in held:
                    yield each
                held.clear()
                last = b""
        for each in held:
            yield each

    @override
    async def aclose(self) -> None:
        await self._response.aclose()


def _core_request(request: httpx2.Request, attempt: Attempt) -> httpcore2.Request:
    async def note(event: str, _info: dict[str, Any]) -> None:
        if event in _SENDS:
            attempt.was_sent = True

    return httpcore2.Request(
        method=request.method,
        url=httpcore2.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions={
            **request.extensions,
            "timeout": {"connect": _CONNECT_SECONDS, "pool": _CONNECT_SECONDS},
            "trace": note,
        },
    )


def _announced_bytes(headers: httpx2.Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


def _refusal(status: int, headers: httpx2.Headers) -> str | None:
    """Return why an answer is not read, or `None`."""
    if status // 100 == 3:  # noqa: PLR2004  # 3xx
        return f"It answered with a redirect (HTTP status {status}), which is not followed."
    codings = [
        *headers.get_list("content-encoding", split_commas=True),
        *headers.get_list("transfer-encoding", split_commas=True),
    ]
    if not {coding.strip().lower() for coding in codings} <= _UNCOMPRESSED:
        return "Its answer is compressed."
    return None

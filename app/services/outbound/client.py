"""Sends requests with aiohttp; each socket is made by the guard, for the address it connects to.

What a name resolved to before counts for nothing: only the address of the connection does.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from app.core.value_objects import value_object
from app.services.outbound.addresses import Guard
from app.services.outbound.bounded_handler import bound_answers
from app.services.outbound_port import (
    OutboundError,
    OutboundFailure,
    OutboundRequest,
    OutboundResponse,
)

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5
_MOST_CONNECTIONS = 1000
_KEEP_ALIVE_SECONDS = 15
_CHUNK_BYTES = 64 * 1024
_UNCOMPRESSED = frozenset({"", "identity", "chunked"})

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]


class _AddressRefused(OSError):
    """The guard does not let a connection to this address be made."""


@dataclass(slots=True)
class _Attempt:
    """What the guard and the connector note of one request."""

    scheme: str
    host: str
    port: int
    is_connected: bool = False
    was_refused: bool = False


_attempt: ContextVar[_Attempt | None] = ContextVar("outbound_attempt", default=None)


@value_object(frozen=True, slots=True)
class _Sessions:
    """Two pools: one that keeps connections, and one that opens each anew."""

    reusing: aiohttp.ClientSession
    fresh: aiohttp.ClientSession


class GuardedClient:
    """Fulfils the port `Outbound`; see `open_outbound`."""

    def __init__(self, guard: Guard, sessions: _Sessions, proxy: str | None) -> None:
        self._guard = guard
        self._sessions = sessions
        self._proxy = proxy

    def refusal_of(self, url: str) -> str | None:
        """See `Outbound.refusal_of`."""
        return self._guard.refusal_of_url(url)

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        """See `Outbound.send`."""
        url = URL(request.url, encoded=True)
        attempt = _Attempt(url.scheme, (url.raw_host or "").rstrip("."), url.port or 0)
        token = _attempt.set(attempt)
        try:
            async with asyncio.timeout(request.timeout_seconds):
                return await self._send(request, url)
        except TimeoutError:
            if attempt.is_connected:
                message = "It did not answer in time."
                raise _error(OutboundFailure.TIMEOUT, attempt, message) from None
            message = "No connection was made in time."
            raise _error(OutboundFailure.UNREACHABLE, attempt, message) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            # Without the cause: it names addresses, and holds the headers.
            logger.debug("An outbound request failed: %s", type(error).__name__)
            raise _translated(error, attempt) from None
        finally:
            _attempt.reset(token)

    async def _send(self, request: OutboundRequest, url: URL) -> OutboundResponse:
        sessions = self._sessions
        session = sessions.reusing if request.reuses_connections else sessions.fresh
        headers = {"User-Agent": "agent-platform", **request.headers, "Accept-Encoding": "identity"}
        async with session.request(
            request.method,
            url,
            headers=headers,
            data=request.body,
            allow_redirects=False,
            proxy=self._proxy,
        ) as response:
            if _is_compressed(response):
                response.close()
                raise OutboundError(
                    OutboundFailure.COMPRESSED, "The answer is compressed.", was_sent=True
                )
            content_type = response.headers.get("Content-Type", "")
            max_bytes = request.max_bytes
            if request.max_image_bytes and content_type.lower().startswith("image/"):
                max_bytes = request.max_image_bytes
            body, is_truncated = await _read(response, max_bytes)
            return OutboundResponse(response.status, content_type, body, is_truncated)


def _translated(error: Exception, attempt: _Attempt) -> OutboundError:
    match error:
        case aiohttp.ClientSSLError() | ssl.SSLError():
            message = "Its certificate is not valid, or it does not speak TLS."
            return OutboundError(OutboundFailure.UNREACHABLE, message, was_sent=False)
        case aiohttp.ClientConnectorError() | aiohttp.ClientHttpProxyError():
            if attempt.was_refused:
                message = "Its name leads to an address that requests may not go to."
                return OutboundError(OutboundFailure.ADDRESS_NOT_ALLOWED, message, was_sent=False)
            message = "It does not accept connections, or its name does not exist."
            return OutboundError(OutboundFailure.UNREACHABLE, message, was_sent=False)
        case aiohttp.InvalidURL() | ValueError():
            return OutboundError(
                OutboundFailure.UNREACHABLE, "It is no address.", was_sent=attempt.is_connected
            )
        case _:
            message = "The connection ended before the answer did, or the answer is not HTTP."
            return _error(OutboundFailure.BROKEN, attempt, message)


def _error(failure: OutboundFailure, attempt: _Attempt, message: str) -> OutboundError:
    return OutboundError(failure, message, was_sent=attempt.is_connected)


def _is_compressed(response: aiohttp.ClientResponse) -> bool:
    headers = response.headers
    codings = [*headers.getall("Content-Encoding", []), *headers.getall("Transfer-Encoding", [])]
    names = {name.strip().lower() for coding in codings for name in coding.split(",")}
    return not names <= _UNCOMPRESSED


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> tuple[bytes, bool]:
    """Return at most `max_bytes` of the body, and whether there was more."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_chunked(_CHUNK_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            response.close()
            return b"".join(pieces)[:max_bytes], True
    return b"".join(pieces), False


def _guarded_factory(guard: Guard) -> Any:  # noqa: ANN401  # aiohttp's own type
    def make_socket(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        attempt = _attempt.get()
        if attempt is None:  # a connection that no request asked for
            raise _AddressRefused("no request")
        is_allowed = family in {socket.AF_INET, socket.AF_INET6} and guard.allows(
            ip_address(address[0]), scheme=attempt.scheme, host=attempt.host, port=address[1]
        )
        if not is_allowed:
            attempt.was_refused = True
            raise _AddressRefused("address not allowed")
        return socket.socket(family, kind, protocol)

    return make_socket


async def _note_connection(_session: object, _context: object, _params: object) -> None:
    """Note that what follows may have left the server."""
    if attempt := _attempt.get():
        attempt.is_connected = True


def _connected_trace() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_note_connection)
    trace.on_connection_reuseconn.append(_note_connection)
    return trace


@asynccontextmanager
async def open_outbound(
    guard: Guard,
    *,
    proxy: str | None = None,
    resolver: AbstractResolver | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[GuardedClient]:
    """Yield a client whose connections are closed after the block.

    With `proxy` every request goes there, and it decides where they go. `resolver` and `tls`
    replace those of the system, for tests.
    """
    factory = None if proxy else _guarded_factory(guard)

    def session(*, force_close: bool) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=_MOST_CONNECTIONS,
            force_close=force_close,
            keepalive_timeout=None if force_close else _KEEP_ALIVE_SECONDS,
            use_dns_cache=False,
            resolver=resolver,
            socket_factory=factory,
            ssl=tls or True,
        )
        bound_answers(connector)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[_connected_trace()],
        )

    async with session(force_close=False) as reusing, session(force_close=True) as fresh:
        yield GuardedClient(guard, _Sessions(reusing, fresh), proxy)

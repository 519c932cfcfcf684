"""HTTP/1.1 for requests to one server, over connections that are kept warm.

aiohttp's overhead was as much as the rest of the way to the provider; it is still used for
WebSockets and behind proxies. Deadlines are in seconds of the event loop's clock.
"""

import asyncio
import ssl
from functools import cache
from socket import SOCK_STREAM
from typing import Any

from aiohappyeyeballs import (
    start_connection,  # pyright: ignore[reportUnknownVariableType]  # of a bare tuple
)
from anyio import to_thread

from app.core.value_objects import value_object
from app.services.provider_http.base_url import BaseUrl
from app.services.provider_http.connection import Connection, ConnectTimeoutError
from app.services.provider_http.content_coding import make_decompressor, read_decompressed

_KEEP_ALIVE_SECONDS = 240
_ADDRESSES_SECONDS = 10
"""How long a host's addresses are good for; a crowd of connections asks for them once."""
_MAX_CONNECTIONS = 1000


@value_object(frozen=True, slots=True)
class Upload:
    """A body that is not JSON; `pieces` follow each other."""

    content_type: str
    pieces: tuple[bytes, ...]


class Http1Response:
    """A response whose body is still to come."""

    def __init__(self, connection: Connection, pool: "Http1Pool") -> None:
        self._connection = connection
        self._pool = pool
        self.status = connection.status
        self.headers = connection.headers
        self._decompressor = make_decompressor(self.headers)

    async def read_any(self, deadline: float) -> bytes:
        """Return what has come, waiting where nothing has; `b""` is the end.

        Raises `TimeoutError` where nothing comes until `deadline`, `ConnectionError` where the body
        breaks off, and `NotHttpError`.
        """
        if self._decompressor is None:
            return await self._connection.read_any(deadline)
        return await read_decompressed(self._decompressor, self._connection.read_any, deadline)

    def close(self) -> None:
        """Keep the connection where the body has ended, or else break it off."""
        if self._connection.may_be_kept:
            self._pool.release(self._connection)
        else:
            self._pool.drop(self._connection)


@cache
def _load_trust() -> ssl.SSLContext:
    """Load the certificates that the system trusts: 2 MB and a twentieth of a second."""
    return ssl.create_default_context()


class Http1Pool:
    """Connections to the origin of `base_url`; `headers` go with every request."""

    def __init__(self, base_url: BaseUrl, headers: dict[str, str], connect_seconds: float) -> None:
        """Prepare, on the event loop; nothing is connected yet."""
        self._loop = asyncio.get_running_loop()
        self._base_url = base_url
        self._is_https = base_url.scheme == "https"
        self._connect_seconds = connect_seconds
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        self._headers = f"Host: {base_url.authority}\r\n{''.join(lines)}"
        self._heads: dict[tuple[str, str, str], bytes] = {}
        """What a request begins with, by method, path and type of the body: a handful."""
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._looking_up = asyncio.Lock()
        self._addresses: Any = None
        self._addresses_end = 0.0

    async def post(self, path: str, body: bytes | Upload, deadline: float) -> Http1Response:
        """Send `body`, JSON or an upload, and return the response, once its head is here.

        A kept connection that turns out to be closed is replaced. Raises `OSError`
        (`ConnectTimeoutError` where no connection is made in time, `TimeoutError` where no head
        comes in time, `ssl.SSLError`, `socket.gaierror`) and `NotHttpError`.
        """
        if isinstance(body, Upload):
            # Its type has a boundary that is new each time.
            kind = f"Content-Type: {body.content_type}\r\n".encode("latin-1")
            head, pieces = self._head("POST", path) + kind, body.pieces
        else:
            head, pieces = self._head("POST", path, "application/json"), (body,)
        length = b"Content-Length: %d\r\n\r\n" % sum(map(len, pieces))
        return await self._send((head + length, *pieces), deadline)

    async def get(self, path: str, deadline: float) -> Http1Response:
        """Ask for `path`; as `post`."""
        return await self._send((self._head("GET", path) + b"\r\n",), deadline)

    def _head(self, method: str, path: str, content_type: str = "") -> bytes:
        key = (method, path, content_type)
        if key not in self._heads:
            target = self._base_url.target(path)
            kind = f"Content-Type: {content_type}\r\n" if content_type else ""
            head = f"{method} {target} HTTP/1.1\r\n{self._headers}{kind}"
            self._heads[key] = head.encode("latin-1")
        return self._heads[key]

    async def _send(self, request: tuple[bytes, ...], deadline: float) -> Http1Response:
        if self._free.locked():
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        else:
            await self._free.acquire()  # at once
        try:
            connection = self._take_idle()
            if connection:
                try:
                    await connection.send(request, deadline)
                except ConnectionError:
                    if connection.has_answered:
                        raise
                else:
                    return Http1Response(connection, self)
            connection = await self._connect(deadline)
            await connection.send(request, deadline)
            return Http1Response(connection, self)
        except BaseException:
            self._free.release()
            raise

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        self._free.release()
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """Break a connection off."""
        self._free.release()
        connection.abort()

    def close(self) -> None:
        """Close what is kept."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _take_idle(self) -> Connection | None:
        oldest = self._loop.time() - _KEEP_ALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, deadline: float) -> Connection:
        try:
            async with asyncio.timeout_at(min(deadline, self._loop.time() + self._connect_seconds)):
                return await self._open_connection()
        except TimeoutError:
            raise ConnectTimeoutError from None

    async def _open_connection(self) -> Connection:
        trust = await to_thread.run_sync(_load_trust) if self._is_https else None
        addresses = await self._look_up()
        try:
            socket: Any = await start_connection(addresses, happy_eyeballs_delay=0.25)
        except BaseException:  # or out of time
            self._addresses = None
            raise
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._loop),
                sock=socket,
                ssl=trust,
                server_hostname=self._base_url.host if trust else None,
            )
        except BaseException:
            socket.close()
            raise
        return connection

    async def _look_up(self) -> Any:  # noqa: ANN401  # as asyncio
        async with self._looking_up:
            if self._addresses is None or self._loop.time() > self._addresses_end:
                host, port = self._base_url.host, self._base_url.port
                addresses = await self._loop.getaddrinfo(host, port, type=SOCK_STREAM)
                self._addresses, self._addresses_end = (
                    addresses,
                    self._loop.time() + _ADDRESSES_SECONDS,
                )
            return self._addresses

"""HTTP/1.1 for requests to one server: warm connections, a parser in C, and little else.

aiohttp's overhead was as much as the rest of the way to the provider; it is still used for
WebSockets and behind proxies. Timeouts are the caller's.
"""

import asyncio
import ssl
import zlib
from dataclasses import dataclass
from functools import cache
from socket import SOCK_STREAM
from typing import Any

import httptools
from aiohappyeyeballs import (
    start_connection,  # pyright: ignore[reportUnknownVariableType]  # of a bare tuple
)
from anyio import to_thread
from multidict import CIMultiDict
from yarl import URL

_KEEP_ALIVE_SECONDS = 240
_ADDRESSES_SECONDS = 10
"""How long a host's addresses are good for; a crowd of connections asks for them once."""
_MAX_CONNECTIONS = 1000
_MAX_HEADER_BYTES = 64 << 10
_BUFFER_BYTES = 256 << 10
"""Above this a server that writes faster than we read has to wait."""
_SENT_AT_ONCE_BYTES = 256 << 10
"""What is larger goes in pieces, as fast as the server takes them."""
_PIECE_BYTES = 64 << 10
_CONTINUE = range(100, 200)
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class NotHttpError(Exception):
    """What came is no HTTP response."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is not JSON; `pieces` follow each other."""

    content_type: str
    pieces: tuple[bytes, ...]


class Response:
    """A response whose body is still to come."""

    def __init__(self, connection: "_Connection", pool: "WirePool") -> None:
        self._connection = connection
        self._pool = pool
        self.status = connection.status
        self.headers = connection.headers
        encoding = self.headers.get("Content-Encoding", "identity").lower()
        self._unzip = None if encoding == "identity" else zlib.decompressobj(_GZIP_OR_ZLIB)
        """We ask for plain bytes; some gateways compress all the same."""

    async def read_any(self) -> bytes:
        """Return what has come, waiting where nothing has; `b""` is the end.

        Raises `ConnectionError` where the body breaks off, and `NotHttpError`.
        """
        if self._unzip is None:
            return await self._connection.read_any()
        while True:
            zipped = self._unzip.unconsumed_tail or await self._connection.read_any()
            if not zipped:
                return b""
            try:
                piece = self._unzip.decompress(zipped, _BUFFER_BYTES)
            except zlib.error:
                raise NotHttpError("the body is not compressed as its header says") from None
            if piece:
                return piece

    def close(self) -> None:
        """Keep the connection where the body has ended, or else break it off."""
        if self._connection.may_be_kept:
            self._pool.take_back(self._connection)
        else:
            self._pool.drop(self._connection)


@cache
def _load_trust() -> ssl.SSLContext:
    """Load the certificates that the system trusts: 2 MB and a twentieth of a second."""
    return ssl.create_default_context()


class WirePool:
    """Connections to the origin of `base_url`; `headers` go with every request."""

    def __init__(self, base_url: URL, headers: dict[str, str], connect_seconds: float) -> None:
        """Prepare; nothing is connected yet."""
        self._host = base_url.raw_host or ""
        self._port = base_url.port or 443
        self._is_https = base_url.scheme == "https"
        self._connect_seconds = connect_seconds
        host = base_url.host_port_subcomponent or ""
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        self._head = f"HTTP/1.1\r\nHost: {host}\r\n{''.join(lines)}".encode("latin-1")
        self._idle: list[_Connection] = []
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._looking_up = asyncio.Lock()
        self._addresses: Any = None
        self._addresses_end = 0.0

    async def post(self, url: URL, body: bytes | Upload) -> Response:
        """Send `body`, JSON or an upload, and return the response, once its head is here.

        A kept connection that turns out to be closed is replaced. Raises `OSError` (`TimeoutError`
        where no connection is made in time, `ssl.SSLError`, `socket.gaierror`) and `NotHttpError`.
        """
        upload = body if isinstance(body, Upload) else Upload("application/json", (body,))
        head = b"POST %s %sContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (
            url.raw_path_qs.encode("ascii"), self._head, upload.content_type.encode("latin-1"),
            sum(map(len, upload.pieces)),
        )  # fmt: skip
        return await self._send((head, *upload.pieces))

    async def get(self, url: URL) -> Response:
        """Ask for `url`; as `post`."""
        head = b"GET %s %s\r\n" % (url.raw_path_qs.encode("ascii"), self._head)
        return await self._send((head,))

    async def _send(self, request: tuple[bytes, ...]) -> Response:
        await self._free.acquire()
        try:
            connection = self._kept()
            if connection:
                try:
                    await connection.send(request)
                except ConnectionError:
                    connection.abort()
                    if connection.has_answered:
                        raise
                else:
                    return Response(connection, self)
            connection = await self._connect()
            try:
                await connection.send(request)
            except BaseException:
                connection.abort()
                raise
            return Response(connection, self)
        except BaseException:
            self._free.release()
            raise

    def take_back(self, connection: "_Connection") -> None:
        """Keep a connection for the next request."""
        self._free.release()
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def drop(self, connection: "_Connection") -> None:
        """Break a connection off."""
        self._free.release()
        connection.abort()

    def close(self) -> None:
        """Close what is kept."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _kept(self) -> "_Connection | None":
        oldest = asyncio.get_running_loop().time() - _KEEP_ALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_seconds):
            trust = await to_thread.run_sync(_load_trust) if self._is_https else None
            found = await self._look_up(loop)
            try:
                socket: Any = await start_connection(found, happy_eyeballs_delay=0.25)
            except BaseException:  # or out of time
                self._addresses = None
                raise
            try:
                _, connection = await loop.create_connection(
                    _Connection,
                    sock=socket,
                    ssl=trust,
                    server_hostname=self._host if trust else None,
                )
            except BaseException:
                socket.close()
                raise
        return connection

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> Any:  # noqa: ANN401  # as asyncio
        async with self._looking_up:
            if self._addresses is None or loop.time() > self._addresses_end:
                found = await loop.getaddrinfo(self._host, self._port, type=SOCK_STREAM)
                self._addresses, self._addresses_end = found, loop.time() + _ADDRESSES_SECONDS
            return self._addresses


class _Connection(asyncio.Protocol):
    """A connection; one request at a time."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.is_complete = False
        self.has_answered = False
        """True once a byte of the response is here."""
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._header_bytes = 0
        self._buffer: list[bytes] = []
        self._buffer_bytes = 0
        self._is_paused = False
        self._may_write = True
        self._is_sent = False
        self._keeps_alive = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_usable(self) -> bool:
        """True while the server keeps the connection open and says nothing unasked."""
        return self._error is None and self._transport is not None

    @property
    def may_be_kept(self) -> bool:
        """True once request and response are over, and the server waits for another."""
        is_over = self.is_complete and self._is_sent and self._keeps_alive
        return is_over and not (self._transport and self._transport.get_write_buffer_size())

    async def send(self, request: tuple[bytes, ...]) -> None:
        """Send a request, and wait for the response's head.

        What answers before it has everything is sent no more.
        """
        self.status = 0
        self.headers = CIMultiDict()
        self.is_complete = self.has_answered = self._is_sent = self._keeps_alive = False
        self._header_bytes = 0
        self._buffer.clear()
        self._buffer_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or self._error:
            raise self._error or ConnectionResetError("the connection is closed")
        await self._write(request)
        while not self.status:
            await self._wait()

    async def _write(self, request: tuple[bytes, ...]) -> None:
        is_small = sum(map(len, request)) <= _SENT_AT_ONCE_BYTES
        for piece in (b"".join(request),) if is_small else request:
            view = memoryview(piece)
            step = _SENT_AT_ONCE_BYTES if is_small else _PIECE_BYTES
            for start in range(0, len(view), step):
                while not self._may_write and not self.status:
                    await self._wait()
                if self.status or self._transport is None:
                    return
                self._transport.write(view[start : start + step])
        self._is_sent = True

    async def read_any(self) -> bytes:
        if isinstance(self._error, NotHttpError):  # then what came before it is no answer either
            raise self._error
        while not self._buffer:
            if self.is_complete:
                return b""
            await self._wait()
        piece = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._buffer_bytes = 0
        if self._is_paused and self._transport:
            self._is_paused = False
            self._transport.resume_reading()
        return piece

    def abort(self) -> None:
        """Close at once, whatever is still to be sent."""
        self._error = self._error or ConnectionAbortedError("we closed the connection")
        if self._transport:
            self._transport.abort()
            self._transport = None

    async def _wait(self) -> None:
        if self._error:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    # What asyncio calls.

    def pause_writing(self) -> None:
        """Wait: the server takes less than we send."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Go on."""
        self._may_write = True
        self._wake()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  # asyncio's own is narrower
        """Take the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse; the methods below are called for what is in `data`."""
        if self._parser is None or self.is_complete:
            self.abort()  # nobody asked
            return
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, NotHttpError):
            self._fail(NotHttpError("the response is not HTTP"))

    def eof_received(self) -> None:
        """End a body that goes to the end of the connection."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is not complete."""
        self._transport = None
        if exc is None:
            self._end()
        self._fail(ConnectionResetError("the server closed the connection"))

    def _end(self) -> None:
        ends_with_connection = self.status and not (
            "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        )
        if ends_with_connection and not self.is_complete and self._error is None:
            self.is_complete = True
            self._wake()

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise NotHttpError("the headers are longer than any can be")
        self.headers.add(name.decode("latin-1"), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """Take the status; "100 Continue" and its like come before the response."""
        status: int = self._parser.get_status_code()
        if status in _CONTINUE:
            self.headers = CIMultiDict()
            return
        self.status = status
        self._wake()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._buffer.append(body)
        self._buffer_bytes += len(body)
        if self._buffer_bytes > _BUFFER_BYTES and not self._is_paused and self._transport:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """End the response."""
        if self.status:
            self.is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()
            self._wake()

"""A real HTTP server on loopback that stands in for the API behind a tool, and can fail.

What it answers depends on the path: `/fail/NAME` fails in one of the ways of `FAULTS`. It keeps
every request, and counts connections, so that a test can say that there were none.
"""

import asyncio
import gzip
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True)
class ReceivedRequest:
    """A request with its whole body; names of headers are lower-case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON
        return orjson.loads(self.body)


@dataclass
class Answer:
    """What the server says to a request that is not to fail."""

    status: int = 200
    body: bytes = b'{"ok": true}'
    content_type: str | None = "application/json"
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass
class ToolServer:
    """`answer` is the next answers'; `hold` is awaited before each of them."""

    port: int = 0
    requests: list[ReceivedRequest] = field(default_factory=list[ReceivedRequest])
    connections: int = 0
    answer: Answer = field(default_factory=Answer)
    respond: Callable[[ReceivedRequest], Answer] | None = None
    """Called instead of taking `answer`, if it is set."""
    hold: Callable[[], Awaitable[object]] | None = None
    received: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each request."""
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where a client left before its answer."""

    stop: Callable[[], None] = field(default=lambda: None)
    """Take no more connections; they are refused."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def allowed(self) -> str:
        """The entry of `TOOLS_ALLOWED_ADDRESSES` that lets tools call it."""
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await _read_request(reader):
                self.requests.append(request)
                self.received.set()
                if self.hold and not await self._held(reader):
                    return
                name = request.target.partition("?")[0].removeprefix("/fail/")
                if name in FAULTS:
                    await FAULTS[name](writer)
                    return
                writer.write(_encode(self.respond(request) if self.respond else self.answer))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _held(self, reader: asyncio.StreamReader) -> bool:
        """Wait for `hold`; return false where the client leaves before."""
        assert self.hold
        held = asyncio.ensure_future(self.hold())
        left = asyncio.ensure_future(reader.read(1))
        done, _ = await asyncio.wait({held, left}, return_when=asyncio.FIRST_COMPLETED)
        for each in (held, left):
            if each not in done:
                each.cancel()
        if held not in done:
            self.broken.set()
            return False
        with suppress(asyncio.CancelledError):
            await left
        return True


async def _read_request(reader: asyncio.StreamReader) -> ReceivedRequest | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return ReceivedRequest(method, target, headers, body)


def _encode(answer: Answer) -> bytes:
    headers = {"Content-Length": str(len(answer.body)), **answer.headers}
    if answer.content_type is not None:
        headers["Content-Type"] = answer.content_type
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {answer.status} Fine\r\n{lines}\r\n".encode() + answer.body


async def _close(writer: asyncio.StreamWriter) -> None:
    """End the connection without a byte."""
    writer.close()


async def _reset(writer: asyncio.StreamWriter) -> None:
    """Reset the connection."""
    writer.transport.abort()


async def _half_an_answer(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def _no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def _broken_chunk(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n")


async def _redirect(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/secret\r\nContent-Length: 0\r\n\r\n"
    )


async def _compressed(writer: asyncio.StreamWriter) -> None:
    body = gzip.compress(b"x" * 5_000_000, 1)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def _error(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n"
        b"\r\nout of paper"
    )


async def _silent(writer: asyncio.StreamWriter) -> None:
    """Say nothing until the client leaves."""
    with suppress(ConnectionError):
        while not writer.transport.is_closing():
            writer.write(b"")
            await asyncio.sleep(0.01)


async def _slow(writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _informational(writer: asyncio.StreamWriter) -> None:
    """Say for ever that the answer will come."""
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
        await writer.drain()


async def _hints(writer: asyncio.StreamWriter) -> None:
    """Answer after some informational responses."""
    writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nDone")


async def _tiny_chunks(writer: asyncio.StreamWriter) -> None:
    """Send a body of 50,000 bytes in as many chunks."""
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
    await writer.drain()


FAULTS: dict[str, Callable[[asyncio.StreamWriter], Awaitable[None]]] = {
    "close": _close,
    "reset": _reset,
    "half": _half_an_answer,
    "no-http": _no_http,
    "chunk": _broken_chunk,
    "redirect": _redirect,
    "compressed": _compressed,
    "endless": _endless,
    "error": _error,
    "silent": _silent,
    "slow": _slow,
    "informational": _informational,
    "hints": _hints,
    "tiny-chunks": _tiny_chunks,
}


@asynccontextmanager
async def tool_server(*, everywhere: bool = False) -> AsyncGenerator[ToolServer]:
    """Run a server on a free port while the block runs.

    It listens on 127.0.0.1, or `everywhere`: on every address of IPv4 and IPv6.
    """
    server = ToolServer()
    bound = (
        socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        if everywhere
        else socket.create_server(("127.0.0.1", 0))
    )
    listening = await asyncio.start_server(server.serve, sock=bound, limit=1 << 20)
    server.stop = listening.close
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()

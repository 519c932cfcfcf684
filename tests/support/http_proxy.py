"""An HTTP proxy on loopback that remembers what it is told: absolute URLs and CONNECT."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE_BYTES = 64 << 10


@dataclass
class HttpProxy:
    """Forwards whatever it is asked for.

    `heads` are those of the first request of each connection. `seen` is all that it could read, so
    nothing of what is in a tunnel.
    """

    port: int = 0
    heads: list[str] = field(default_factory=list[str])
    seen: bytearray = field(default_factory=bytearray)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            self.seen += head.encode("latin-1")
            method, target, *_ = head.split(" ")
            parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
            answers, upstream = await asyncio.open_connection(parts.hostname, parts.port)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = target.partition(parts.netloc)[2]
                upstream.write(head.replace(target, path, 1).encode("latin-1"))
            async with asyncio.TaskGroup() as group:
                readable = bytearray() if method == "CONNECT" else self.seen
                group.create_task(_pump(reader, upstream, readable))
                group.create_task(_pump(answers, writer, bytearray()))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for stream in (writer, upstream):
                if stream is not None:
                    stream.close()


async def _pump(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, seen: bytearray
) -> None:
    while piece := await source.read(_PIECE_BYTES):
        seen += piece
        target.write(piece)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()

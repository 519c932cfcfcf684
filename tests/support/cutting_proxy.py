"""A TCP proxy on loopback that cuts connections after so many bytes of the answer, or refuses."""

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_PIECE_BYTES = 64 << 10


@dataclass
class CuttingProxy:
    """Forwards connections to `target_port`, with two threads for each.

    A connection takes the next of `refusals`, whole HTTP responses, which are sent instead of
    the server's; else the next of `cuts`, the bytes of answers after which both sides are cut.
    """

    target_port: int
    port: int = 0
    cuts: list[int] = field(default_factory=list[int])
    refusals: list[bytes] = field(default_factory=list[bytes])
    connections: int = 0
    _sockets: list[socket.socket] = field(default_factory=list[socket.socket])
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._sockets.append(listener)
        self._start(self._accept, listener)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
        for each in self._sockets:
            each.close()

    def cut_open_connections(self) -> None:
        """Cut the connections that are open, so that the next requests need new ones."""
        for connection in self._sockets[1:]:
            _cut(connection)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # pyright: ignore[reportArgumentType]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._sockets.append(client)
                self.connections += 1
                if self.refusals:
                    self._start(_refuse, client, self.refusals.pop(0))
                    continue
                left = self.cuts.pop(0) if self.cuts else None
                try:
                    server = socket.create_connection(("127.0.0.1", self.target_port))
                except OSError:
                    _cut(client)
                    continue
                self._sockets.append(server)
                self._start(_forward, client, server, None)
                self._start(_forward, server, client, left)


def _refuse(client: socket.socket, answer: bytes) -> None:
    """Answer one request, and end the connection."""
    received = b""
    with suppress(OSError):
        while b"\r\n\r\n" not in received:
            received += client.recv(_PIECE_BYTES)
        head, _, body = received.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        missing = int(length.split(b"\r\n")[0] or 0) - len(body)
        while missing > 0:
            missing -= len(client.recv(_PIECE_BYTES))
        client.sendall(answer)
    _cut(client)


def _forward(source: socket.socket, target: socket.socket, left: int | None) -> None:
    """Forward until either side ends, or `left` bytes have gone through."""
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            piece = piece if left is None else piece[:left]
            left = None if left is None else left - len(piece)
            target.sendall(piece)
            if left == 0:
                break
    _cut(source)
    _cut(target)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)

"""A TCP proxy before Postgres that loses the answers of some COMMITs.

It reads the client's messages (https://www.postgresql.org/docs/current/protocol-message-formats.html),
and names a transaction by the statements in it.
"""

import asyncio
import random
import re
import struct
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

PROTOCOL_3 = 196_608
ANSWER_SECONDS = 5
LOST_ONE_IN = 12


class Loss(StrEnum):
    """What becomes of a COMMIT whose answer is lost."""

    ANSWERED = "answered"
    """Postgres has done it, and the client never learns of it."""
    RACING = "racing"
    """The connection is cut as soon as COMMIT is sent: it may still be on its way."""
    UNSENT = "unsent"
    """The connection is cut before COMMIT is passed on: nothing is stored."""


_KINDS = (
    ("acceptance", re.compile(r"INSERT INTO \S*\bturns\b")),
    ("restart", re.compile(r"UPDATE \S*\bturns SET status.*\bcancel_requested_at=", re.DOTALL)),
    ("promotion", re.compile(r"UPDATE \S*\bturns SET status=\S+ owner_id=\S+ lease_expires_at=\(")),
    ("settlement", re.compile(r"UPDATE \S*\bturns SET .*\bfinish_reason=", re.DOTALL)),
    ("recovery", re.compile(r"UPDATE \S*\bturns SET .*\brecoveries=\(", re.DOTALL)),
    ("checkpoint", re.compile(r"INSERT INTO \S*\bturn_events\b")),
    ("agent", re.compile(r"INSERT INTO \S*\bagents\b")),
    ("cancel", re.compile(r"UPDATE \S*\bturns SET cancel_requested_at=")),
)


def kind_of(statements: list[str]) -> str:
    """Name a transaction by its statements."""
    sql = "\n".join(statements)
    return next((kind for kind, pattern in _KINDS if pattern.search(sql)), "other")


@dataclass(slots=True)
class CommitProxy:
    """Forwards connections to `target_port`, and cuts one in so many at its COMMIT."""

    target_port: int
    rng: random.Random
    one_in: int = LOST_ONE_IN
    is_losing: bool = False
    port: int = 0
    commits: Counter[str] = field(default_factory=Counter[str])
    lost: Counter[str] = field(default_factory=Counter[str])
    """By kind of transaction, and by what became of it."""

    _links: set["_Link"] = field(default_factory=set["_Link"])

    def cut_off(self) -> None:
        """Cut every connection, and refuse new ones until `target_port` is set again."""
        self.target_port = 1
        for link in self._links:
            if not link.is_cut:
                link.abort()

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            to_client.transport.abort()
            return
        link = _Link(self, client, to_client, server, to_server)
        self._links.add(link)
        async with asyncio.TaskGroup() as group:
            group.create_task(link.pass_back())
            with suppress(OSError, asyncio.IncompleteReadError):
                await link.pass_on()
            link.abort()
        self._links.discard(link)

    def choose(self, kind: str) -> Loss | None:
        """Decide whether a COMMIT loses its answer, and how."""
        self.commits[kind] += 1
        if not self.is_losing or self.rng.randrange(self.one_in):
            return None
        loss = self.rng.choice(list(Loss))
        self.lost[f"{kind} {loss}"] += 1
        return loss


@dataclass(slots=True, eq=False)
class _Link:
    proxy: CommitProxy
    client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    is_cut: bool = False
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    statements: list[str] = field(default_factory=list[str])

    def abort(self) -> None:
        """Cut both connections."""
        self.to_client.transport.abort()
        self.to_server.transport.abort()

    async def pass_on(self) -> None:
        """Forward what the client says, until it ends or is cut."""
        while not await self._pass_on_startup():
            pass
        while True:
            head = await self.client.readexactly(5)
            body = await self.client.readexactly(struct.unpack("!I", head[1:])[0] - 4)
            if not self._is_commit(head[:1], body):
                self.to_server.write(head + body)
                await self.to_server.drain()
                continue
            self.is_cut = True  # as of now, should everything else be cut off
            loss = self.proxy.choose(kind_of(self.statements))
            self.is_cut = loss is not None
            self.answered.clear()
            if loss is not Loss.UNSENT:
                self.to_server.write(head + body)
                await self.to_server.drain()
            if loss is Loss.ANSWERED:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self.answered.wait()
            if loss:
                return

    async def pass_back(self) -> None:
        """Forward what the server says; its answer to a lost COMMIT is dropped."""
        with suppress(OSError):
            while data := await self.server.read(65_536):
                if self.is_cut:
                    self.answered.set()
                    continue
                self.to_client.write(data)
                await self.to_client.drain()
        self.answered.set()
        self.to_client.transport.abort()

    async def _pass_on_startup(self) -> bool:
        head = await self.client.readexactly(8)
        length, code = struct.unpack("!II", head)
        self.to_server.write(head + await self.client.readexactly(length - 8))
        await self.to_server.drain()
        return code == PROTOCOL_3

    def _is_commit(self, kind: bytes, body: bytes) -> bool:
        if kind == b"P":
            self.statements.append(body.split(b"\0")[1].decode())
        elif kind == b"Q":
            sql = body.rstrip(b"\0").decode()
            if sql.startswith("BEGIN"):
                self.statements = []
            return sql.startswith("COMMIT")
        return False


@asynccontextmanager
async def commit_proxy(
    target_port: int, rng: random.Random, make: type[CommitProxy] = CommitProxy
) -> AsyncGenerator[CommitProxy]:
    """Listen on a free loopback port; `is_losing` is to be set when the servers have started."""
    proxy = make(target_port, rng)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()

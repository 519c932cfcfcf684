"""The floor: a minimal hand-written server for text turns, as the lower limit to compare with.

It uses uvloop, httptools and asyncpg, or SQLite without threads: it reads 20 messages, sends them
to the provider over a raw connection, and stores two messages in one statement that commits. It
has no validation, authentication, recovery or retries, so it is not fit for production.
`python -m bench.floor PORT DATABASE PROVIDER_PORT`, where DATABASE is a URL or a SQLite file.
"""

import asyncio
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none
import orjson

from bench.wire import (
    STREAM_END,
    STREAM_HEAD,
    ClientConnection,
    ServerConnection,
    answer,
    chunk,
    post,
    run,
)

TABLE = """
CREATE TABLE IF NOT EXISTS messages (
    session_id uuid, seq int, role text NOT NULL, content text NOT NULL,
    PRIMARY KEY (session_id, seq)
)"""
_READ = "SELECT seq, role, content FROM messages WHERE session_id = $1 ORDER BY seq DESC LIMIT 20"
_STORE = "INSERT INTO messages VALUES ($1, $2, 'user', $3), ($1, $2 + 1, 'assistant', $4)"
_LF2 = b"\n\n"


class _SqliteStatement:
    """A SQLite statement with the interface of asyncpg's; it runs on the event loop."""

    def __init__(self, connection: sqlite3.Connection, sql: str) -> None:
        self._connection = connection
        self._sql = sql.replace("$", "?")

    async def fetch(self, session_id: UUID, *values: object) -> list[Any]:
        """Run and commit the statement, and return its rows."""
        return self._connection.execute(self._sql, (str(session_id), *values)).fetchall()


@dataclass(slots=True)
class _Connections:
    """The database statements and the provider connection of one turn at a time."""

    read: Any
    store: Any
    provider: ClientConnection


class Floor:
    """Serves `POST /messages/text`, as JSON or as an event stream."""

    def __init__(self, tasks: asyncio.TaskGroup, database: str, provider_port: int) -> None:
        self._tasks = tasks
        self._database = database
        self._sqlite = None if "://" in database else open_sqlite(Path(database))
        self._provider_port = provider_port
        self._idle: list[_Connections] = []

    def accept(self) -> ServerConnection:
        """Return the protocol of a new connection."""
        return ServerConnection(self._serve)

    def _serve(self, client: ServerConnection) -> None:
        if client.path == b"/messages/text":
            self._tasks.create_task(self._turn(client))
        else:
            client.write(answer(b"{}"))

    async def _turn(self, client: ServerConnection) -> None:
        connections = self._idle.pop() if self._idle else await self._connect()
        request = orjson.loads(client.body)
        session_id, question = UUID(request["session_id"]), request["content"]
        if client.wants_events:
            created = _event("turn.created", {"session_id": request["session_id"]})
            client.write(STREAM_HEAD + chunk(created))
        rows = await connections.read.fetch(session_id)
        history = [{"role": row[1], "content": row[2]} for row in reversed(rows)]
        history.append({"role": "user", "content": question})
        reader = _Reader(client if client.wants_events else None)
        body = orjson.dumps({"model": request["model"], "messages": history, "stream": True})
        await connections.provider.exchange(post("/v1/chat/completions", body), reader.feed)
        text = "".join(reader.texts)
        seq = rows[0][0] + 1 if rows else 1
        await connections.store.fetch(session_id, seq, question, text)
        self._idle.append(connections)
        message = {"seq": seq + 1, "role": "assistant", "content": text, "status": "completed"}
        if client.wants_events:
            last = chunk(_event("turn.completed", {"message": message}))
            client.write(last + STREAM_END)
        else:
            client.write(answer(orjson.dumps(message)))

    async def _connect(self) -> _Connections:
        provider = await ClientConnection.open(self._provider_port)
        if self._sqlite:
            read, store = (_SqliteStatement(self._sqlite, sql) for sql in (_READ, _STORE))
            return _Connections(read, store, provider)
        driver: Any = asyncpg  # it has no type stubs
        database = await driver.connect(self._database)
        read, store = await database.prepare(_READ), await database.prepare(_STORE)
        return _Connections(read, store, provider)


class _Reader:
    """Collects the text of a provider's stream, and sends each token to a streaming client."""

    __slots__ = ("_client", "_rest", "texts")

    def __init__(self, client: ServerConnection | None) -> None:
        self.texts: list[str] = []
        self._client = client
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        """Parse a received piece, which may end within an event."""
        *events, self._rest = (self._rest + piece).split(_LF2)
        for event in events:
            if event == b"data: [DONE]":
                continue
            choices = orjson.loads(event[6:])["choices"]
            text = choices[0]["delta"].get("content") if choices else None
            if text:
                self.texts.append(text)
                if self._client:
                    self._client.write(chunk(_event("output_text.delta", {"delta": text})))


def _event(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


def open_sqlite(path: Path) -> sqlite3.Connection:
    """Return a connection in autocommit mode, as durable as our server's (WAL, FULL)."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


async def _listen(port: int, database: str, provider_port: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        floor = Floor(tasks, database, provider_port)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(floor.accept, "127.0.0.1", port)
        await server.serve_forever()


if __name__ == "__main__":
    run(_listen(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

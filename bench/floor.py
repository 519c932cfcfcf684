"""The floor: a text turn with nothing around it, as the physical limit to compare with.

uvloop, httptools and asyncpg, or SQLite without threads: read 20 messages, ask the provider over a
raw connection, store two messages in one statement that commits. No validation, no identity, no
recovery, no retries: it is no server that anybody could run.
`python -m bench.floor PORT DATABASE PROVIDER_PORT`, where DATABASE is a URL or SQLite's file.
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
    """What asyncpg's prepared statements do, on the event loop."""

    def __init__(self, connection: sqlite3.Connection, sql: str) -> None:
        self._connection = connection
        self._sql = sql.replace("$", "?")

    async def fetch(self, session_id: UUID, *values: object) -> list[Any]:
        """Run it, and return its rows; what it changed is on the disk."""
        return self._connection.execute(self._sql, (str(session_id), *values)).fetchall()


@dataclass(slots=True)
class _Lane:
    """What one turn at a time needs: nothing is waited for."""

    read: Any
    store: Any
    provider: ClientConnection


class Floor:
    """Serves `POST /messages/text`, whole or as events."""

    def __init__(self, tasks: asyncio.TaskGroup, database: str, provider_port: int) -> None:
        self._tasks = tasks
        self._database = database
        self._sqlite = None if "://" in database else open_sqlite(Path(database))
        self._provider_port = provider_port
        self._idle: list[_Lane] = []

    def accept(self) -> ServerConnection:
        """Return the protocol of a new connection."""
        return ServerConnection(self._serve)

    def _serve(self, client: ServerConnection) -> None:
        if client.path == b"/messages/text":
            self._tasks.create_task(self._turn(client))
        else:
            client.write(answer(b"{}"))

    async def _turn(self, client: ServerConnection) -> None:
        lane = self._idle.pop() if self._idle else await self._open_lane()
        asked = orjson.loads(client.body)
        session_id, question = UUID(asked["session_id"]), asked["content"]
        if client.wants_events:
            created = _event("turn.created", {"session_id": asked["session_id"]})
            client.write(STREAM_HEAD + chunk(created))
        rows = await lane.read.fetch(session_id)
        history = [{"role": row[1], "content": row[2]} for row in reversed(rows)]
        history.append({"role": "user", "content": question})
        reader = _Reader(client if client.wants_events else None)
        body = orjson.dumps({"model": asked["model"], "messages": history, "stream": True})
        await lane.provider.exchange(post("/v1/chat/completions", body), reader.feed)
        text = "".join(reader.texts)
        seq = rows[0][0] + 1 if rows else 1
        await lane.store.fetch(session_id, seq, question, text)
        self._idle.append(lane)
        message = {"seq": seq + 1, "role": "assistant", "content": text, "status": "completed"}
        if client.wants_events:
            last = chunk(_event("turn.completed", {"message": message}))
            client.write(last + STREAM_END)
        else:
            client.write(answer(orjson.dumps(message)))

    async def _open_lane(self) -> _Lane:
        provider = await ClientConnection.open(self._provider_port)
        if self._sqlite:
            read, store = (_SqliteStatement(self._sqlite, sql) for sql in (_READ, _STORE))
            return _Lane(read, store, provider)
        driver: Any = asyncpg  # without types
        database = await driver.connect(self._database)
        return _Lane(await database.prepare(_READ), await database.prepare(_STORE), provider)


class _Reader:
    """Collects the text of a provider's stream, and passes each token on to who follows."""

    __slots__ = ("_client", "_rest", "texts")

    def __init__(self, client: ServerConnection | None) -> None:
        self.texts: list[str] = []
        self._client = client
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        """Take a piece, wherever it was cut."""
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
    """Return a connection as durable as our server's, each of whose statements commits."""
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

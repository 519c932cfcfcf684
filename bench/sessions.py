"""Prepares sessions with a history: over the API for the server, in SQL for the floor.

The server's sessions begin with 16 messages and take five turns each, so that a turn has 20
messages before it on average; the floor always reads 20.
"""

import http.client
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from bench.floor import TABLE, open_sqlite
from tests.support.postgres import PostgresServer

TURNS_PER_SESSION = 5
_FIRST_TURNS = 8
_QUESTION = "Tell me a little more about it, and then say what came of it."


class PreparationFailed(RuntimeError):
    """The server refused to create an agent or a session."""


class ServerSessions:
    """Creates sessions on a running server."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def make(
        self,
        model: str,
        count: int,
        then: str | None = None,
        tool: Mapping[str, object] | None = None,
    ) -> list[str]:
        """Create `count` sessions as forks of one conversation with `model`; return their ids.

        `then` is the model of their further turns, if it is another one, and `tool` the definition
        of a tool that these have.
        """
        agent = self._post("/agents", {"name": "Ada", "model": model, "system_prompt": _PROMPT})
        original = self._post("/sessions", {"agent_id": agent["id"]})
        for _ in range(_FIRST_TURNS):
            body = {"session_id": original["id"], "content": _QUESTION}
            self._post("/messages/text", body)
        if then:
            self._request("PUT", f"/agents/{agent['id']}", {"model": then})
        if tool:
            made = self._post("/tools", tool)
            self._request("PUT", f"/agents/{agent['id']}", {"tools": [{"tool_id": made["id"]}]})
        forks = [self._post(f"/sessions/{original['id']}/fork", {})["id"] for _ in range(count)]
        self._connection.close()
        return forks

    def _post(self, path: str, body: object) -> Any:  # noqa: ANN401  # JSON
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: object) -> Any:  # noqa: ANN401  # JSON
        headers = {"Content-Type": "application/json"}
        self._connection.request(method, path, orjson.dumps(body), headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status // 100 != 2:  # noqa: PLR2004  # 2xx
            raise PreparationFailed(f"{method} {path}: {response.status} {answer.decode()}")
        return orjson.loads(answer)


_PROMPT = "You are Ada, who knows the history of engines. Answer in one or two short sentences."


def make_floor_sessions(postgres: PostgresServer, database: str, count: int) -> Sequence[str]:
    """Create a database with `count` sessions of 20 messages, and return their ids."""
    postgres.create_database(database)
    postgres.execute(TABLE, database)
    postgres.execute(
        "INSERT INTO messages "  # noqa: S608  # numbers and constants
        "SELECT lpad(to_hex(session), 32, '0')::uuid, seq, "
        f"CASE seq % 2 WHEN 1 THEN 'user' ELSE 'assistant' END, '{_QUESTION} {_QUESTION}' "
        f"FROM generate_series(1, {count}) session, generate_series(1, 20) seq",
        database,
    )
    postgres.execute("VACUUM ANALYZE", database)
    return [str(UUID(int=number)) for number in range(1, count + 1)]


def make_sqlite_floor_sessions(path: Path, count: int) -> Sequence[str]:
    """Do the same as `make_floor_sessions` in a SQLite file."""
    with closing(open_sqlite(path)) as connection:
        connection.execute(TABLE)
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO messages VALUES (?, ?, ?, ?)",
            (
                (str(UUID(int=number)), seq, ("assistant", "user")[seq % 2], _QUESTION * 2)
                for number in range(1, count + 1)
                for seq in range(1, 21)
            ),
        )
        connection.execute("COMMIT")
    return [str(UUID(int=number)) for number in range(1, count + 1)]

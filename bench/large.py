"""Fills databases with SQL: long sessions, and many of them.

Ids are consecutive numbers as UUIDs: like UUIDv7 they increase, so that indexes grow at their end.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

from tests.support.postgres import PostgresServer

_WORDS = "What became of it, and what do you make of all that so far? Say it in a sentence."
_ROLE = "CASE seq % 2 WHEN 1 THEN 'user' ELSE 'assistant' END"


def fill_postgres(
    postgres: PostgresServer, database: str, like: str, sessions: int, messages: int
) -> list[str]:
    """Add `sessions` with `messages` messages each, copied from the session `like`.

    They have its workspace and agent. Returns their ids.
    """
    first = _first(sessions, messages)

    def as_uuid(number: str) -> str:
        return f"lpad(to_hex({number}), 32, '0')::uuid"

    postgres.execute(
        "INSERT INTO agent_platform.sessions "  # noqa: S608  # only generated numbers and ids
        "(workspace_id, id, created_at, agent_id, metadata, last_seq, updated_at) "
        f"SELECT workspace_id, {as_uuid(f'{first} + n')}, now(), agent_id, '{{}}', {messages}, "
        f"now() FROM agent_platform.sessions, generate_series(1, {sessions}) n "
        f"WHERE id = '{like}'",
        database,
    )
    postgres.execute(
        "INSERT INTO agent_platform.messages "  # noqa: S608  # only generated numbers and ids
        "(workspace_id, id, created_at, session_id, seq, role, modality, status, content) "
        f"SELECT s.workspace_id, {as_uuid(f'{first} + n::bigint * {messages} + seq')}, now(), "
        f"{as_uuid(f'{first} + n')}, seq, {_ROLE}, 'text', 'completed', '{_WORDS}' "
        f"FROM agent_platform.sessions s, generate_series(1, {sessions}) n, "
        f"generate_series(1, {messages}) seq WHERE s.id = '{like}'",
        database,
    )
    postgres.execute("VACUUM ANALYZE", database)
    return [str(UUID(int=first + number)) for number in range(1, sessions + 1)]


def fill_sqlite(path: Path, like: str, sessions: int, messages: int) -> list[str]:
    """Do the same as `fill_postgres` in a SQLite file, which a server may have open."""
    first = _first(sessions, messages)
    parameters = {
        "first": first,
        "sessions": sessions,
        "messages": messages,
        "like": UUID(like).hex,
    }
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        connection.execute(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :sessions) "
            "INSERT INTO sessions "
            "(workspace_id, id, created_at, agent_id, metadata, last_seq, updated_at) "
            "SELECT workspace_id, printf('%032x', :first + n), created_at, agent_id, '{}', "
            ":messages, updated_at FROM sessions, n WHERE id = :like",
            parameters,
        )
        connection.execute(
            "WITH RECURSIVE "  # noqa: S608  # constants
            "n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :sessions), "
            "seq(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM seq WHERE seq < :messages) "
            "INSERT INTO messages "
            "(workspace_id, id, created_at, session_id, seq, role, modality, status, content) "
            "SELECT workspace_id, printf('%032x', :first + n * :messages + seq), created_at, "
            f"printf('%032x', :first + n), seq, {_ROLE}, 'text', 'completed', '{_WORDS}' "
            "FROM sessions s, n, seq WHERE s.id = :like",
            parameters,
        )
    return [str(UUID(int=first + number)) for number in range(1, sessions + 1)]


def _first(sessions: int, messages: int) -> int:
    """Return the first id, which differs for each combination of sizes."""
    return (sessions * 7919 + messages) * 10**9

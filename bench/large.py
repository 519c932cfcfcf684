"""Large databases, made in SQL: long sessions, and many of them."""

import hashlib
from uuid import UUID

from tests.postgres import PostgresServer

_WORDS = "What became of it, and what do you make of all that so far? Say it in a sentence."


def fill(
    postgres: PostgresServer, database: str, like: str, sessions: int, messages: int
) -> list[str]:
    """Add `sessions` of `messages` each, owned as the session `like` is; return their ids."""
    made = f"{sessions}-{messages}"
    postgres.execute(
        "INSERT INTO agent_platform.sessions "  # noqa: S608  # numbers and ids of our own
        "(workspace_id, id, created_at, agent_id, metadata, last_seq, updated_at) "
        f"SELECT workspace_id, md5('{made}-' || n)::uuid, now(), agent_id, '{{}}', {messages}, "
        f"now() FROM agent_platform.sessions, generate_series(1, {sessions}) n "
        f"WHERE id = '{like}'",
        database,
    )
    postgres.execute(
        "INSERT INTO agent_platform.messages "  # noqa: S608  # numbers and ids of our own
        "(workspace_id, id, created_at, session_id, seq, role, modality, status, content) "
        f"SELECT s.workspace_id, md5('{made}-' || n || '-' || seq)::uuid, now(), "
        f"md5('{made}-' || n)::uuid, seq, "
        "CASE seq % 2 WHEN 1 THEN 'user' ELSE 'assistant' END, 'text', 'completed', "
        f"'{_WORDS}' FROM agent_platform.sessions s, generate_series(1, {sessions}) n, "
        f"generate_series(1, {messages}) seq WHERE s.id = '{like}'",
        database,
    )
    postgres.execute("VACUUM ANALYZE", database)
    return [_id(f"{made}-{number}") for number in range(1, sessions + 1)]


def _id(name: str) -> str:
    """Return what `md5(name)::uuid` is in Postgres."""
    return str(UUID(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()))

"""Empty, migrated databases of PostgreSQL, which tests use one after the other.

To make a database and to drop it costs ten times what it costs to delete the few rows of a test,
and new connections know nothing of the catalog. So a database whose rows alone were changed is
emptied and used again; one that is changed otherwise, or still in use, is dropped.
"""

import asyncio
import io
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg

from tests.support import planted_secrets
from tests.support.postgres import PostgresServer

_MOST_USES = 100
"""Deleted rows stay in the files until then."""
_MOST_BYTES = 1_000_000
_TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE relnamespace = to_regnamespace('agent_platform') AND relkind = 'r' ORDER BY 1
"""
_CATALOGS = (
    "pg_attribute", "pg_attrdef", "pg_class", "pg_constraint", "pg_default_acl", "pg_extension",
    "pg_index", "pg_namespace", "pg_policy", "pg_proc", "pg_rewrite", "pg_sequence",
    "pg_statistic", "pg_trigger", "pg_type",
)  # fmt: skip
_FINGERPRINT = " UNION ALL ".join(
    f"SELECT count(*), max(xmin::text::bigint) FROM {catalog}"  # noqa: S608  # the names above
    for catalog in _CATALOGS
)
"""A row that is changed has a newer transaction, and one that is dropped is not counted."""
_IN_USE = """
SELECT count(*) FROM pg_stat_activity a
WHERE datname = current_database() AND pid <> pg_backend_pid()
AND (state <> 'idle' OR EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid))
"""


@dataclass(slots=True)
class _Kept:
    """A database, a superuser's connection to it, and what it was before its first use."""

    name: str
    connection: Any
    tables: list[str]
    rows: dict[str, bytes]
    """Of each table that is not empty, as COPY writes them."""
    fingerprint: list[Any]
    uses: int = 0


class RecycledDatabases:
    """Hands out copies of `template`; one at a time is kept for the next who asks."""

    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._free: _Kept | None = None
        self._taken: dict[str, _Kept] = {}

    def take(self, *, new: bool = False) -> str:
        """Return the name of an empty, migrated database; `new` is one that nobody used before."""
        kept = None if new else self._free
        if kept is None:
            kept = self._runner.run(self._make())
        else:
            self._free = None
        kept.uses += 1
        self._taken[kept.name] = kept
        return kept.name

    def give_back(self, name: str) -> None:
        """Search a database for planted secrets, and empty or drop it."""
        kept = self._taken.pop(name)
        is_clean = False
        if self._free is None and kept.uses < _MOST_USES:
            try:
                is_clean = self._runner.run(_empty(kept))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # it was restarted
                is_clean = False
        if is_clean:
            self._free = kept
        else:
            self._drop(kept)

    def close(self) -> None:
        """Drop every database that is kept or was not given back."""
        free = [self._free] if self._free is not None else []
        for kept in (*free, *self._taken.values()):
            self._drop(kept)
        self._runner.close()

    async def _make(self) -> _Kept:
        name = f"test_{uuid4().hex[:12]}"
        self._server.create_database(name, template=self._template)
        driver: Any = asyncpg  # has no types
        # As in the dump of a whole database.
        connection = await driver.connect(
            self._server.url(name), server_settings={"bytea_output": "escape"}
        )
        tables = [row[0] for row in await connection.fetch(_TABLES)]
        rows = await _copied(connection, tables)
        return _Kept(name, connection, tables, rows, await connection.fetch(_FINGERPRINT))

    def _drop(self, kept: _Kept) -> None:
        self._runner.run(_disconnect(kept))
        self._server.drop_database(kept.name)


async def _disconnect(kept: _Kept) -> None:
    kept.connection.terminate()  # also where the server is gone
    await asyncio.sleep(0)  # the transport closes its socket then


async def _copied(connection: Any, tables: list[str]) -> dict[str, bytes]:  # noqa: ANN401  # as above
    """Return the rows of each table that has some."""
    has_rows = ", ".join(f"EXISTS (SELECT FROM {table})" for table in tables)
    filled = await connection.fetchrow(f"SELECT {has_rows}")  # of the catalog
    rows: dict[str, bytes] = {}
    for table, is_filled in zip(tables, filled, strict=True):
        if is_filled:
            output = io.BytesIO()
            await connection.copy_from_query(f"TABLE {table}", output=output)
            rows[table] = output.getvalue()
    return rows


async def _empty(kept: _Kept) -> bool:
    """Search the database and put it back; return whether it is as it was before its first use."""
    connection = kept.connection
    if await connection.fetchval(_IN_USE):
        return False
    if await connection.fetch(_FINGERPRINT) != kept.fingerprint:
        return False
    rows = await _copied(connection, kept.tables)
    dump = b"".join(rows.values())
    if len(dump) > _MOST_BYTES:
        return False
    planted_secrets.search(planted_secrets.Place.DATABASE, dump, "PostgreSQL")
    changed = [table for table in {**rows, **kept.rows} if rows.get(table) != kept.rows.get(table)]
    if not changed:
        return True
    async with connection.transaction():
        # Without foreign keys, whose order is that of nobody's interest here.
        deletions = "".join(f"DELETE FROM {table};" for table in changed)  # noqa: S608
        await connection.execute(f"SET LOCAL session_replication_role = replica;{deletions}")
        for table in changed:
            if table in kept.rows:
                schema, _, name = table.partition(".")
                await connection.copy_to_table(
                    name, schema_name=schema, source=io.BytesIO(kept.rows[table])
                )
    return True

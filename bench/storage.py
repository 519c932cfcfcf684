"""Measures what a turn stores in PostgreSQL: rows, bytes of tables and indexes, and WAL."""

import asyncio
from typing import Any

import asyncpg as untyped_asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bench.sessions import ServerSessions
from bench.site import Site
from bench.wire import ClientConnection, run, text_turn

asyncpg: Any = untyped_asyncpg
Cells = list[list[str]]

_TURNS = 1600
_CONNECTIONS = 16
_SESSIONS = 160
_TABLES = """
SELECT relname, n_tup_ins, pg_relation_size(relid), pg_indexes_size(relid)
FROM pg_stat_user_tables WHERE schemaname = 'agent_platform'
"""
_WAL = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"
_COMMITS = "SELECT sum(xact_commit) FROM pg_stat_database WHERE datname = current_database()"
_ROW = "SELECT avg(pg_column_size(t.*)) FROM agent_platform.{} t"


def storage(site: Site) -> Cells:
    """Storage per turn in PostgreSQL, after 1,600 text turns of about 100 characters."""
    place = site.place("PostgreSQL")
    with site.server(place) as server:
        ids = ServerSessions(server.port).make("tokens-20", _SESSIONS)
        url = site.postgres.url(place.name or "")
        return run(_measure(server.port, url, ids))


async def _measure(port: int, url: str, ids: list[str]) -> Cells:
    await _talk(port, ids[:_CONNECTIONS], _CONNECTIONS)
    connection = await asyncpg.connect(url)
    await connection.execute("CHECKPOINT")  # so that the WAL includes full-page images
    await _settle()
    before, wal, commits = await _read_sizes(connection)
    await _talk(port, ids, _TURNS)
    await _settle()
    after, wal_after, commits_after = await _read_sizes(connection)
    cells = [["", "rows per turn", "bytes per row", "table bytes per turn", "index bytes per turn"]]
    totals = [0.0, 0.0]
    for name, (rows, table_bytes, index_bytes) in sorted(after.items()):
        old = before[name]
        if rows - old[0] < _TURNS / 10:
            continue
        size = await connection.fetchval(_ROW.format(name))
        grown = [(table_bytes - old[1]) / _TURNS, (index_bytes - old[2]) / _TURNS]
        totals = [total + more for total, more in zip(totals, grown, strict=True)]
        numbers = [f"{(rows - old[0]) / _TURNS:.1f}", f"{size:.0f}", *(f"{n:.0f}" for n in grown)]
        cells.append([name, *numbers])
    cells.append(["all", "", "", *(f"{total:.0f}" for total in totals)])
    cells.append(["write-ahead log, bytes", "", "", f"{(wal_after - wal) / _TURNS:.0f}", ""])
    cells.append(["commits", f"{(commits_after - commits) / _TURNS:.2f}", "", "", ""])
    await connection.close()
    return cells


async def _settle() -> None:
    """Wait for PostgreSQL's statistics, which backends report with a delay of a second."""
    await asyncio.sleep(2)


async def _read_sizes(
    connection: Any,  # noqa: ANN401  # asyncpg's
) -> tuple[dict[str, tuple[int, int, int]], float, float]:
    rows = await connection.fetch(_TABLES)
    sizes = {row[0]: (row[1], row[2], row[3]) for row in rows}
    wal, commits = await connection.fetchval(_WAL), await connection.fetchval(_COMMITS)
    return sizes, float(wal), float(commits)


async def _talk(port: int, ids: list[str], turns: int) -> None:
    """Send turns on 16 connections, each of which uses sessions of its own."""

    async def use(number: int) -> None:
        connection = await ClientConnection.open(port)
        session_ids = ids[number::_CONNECTIONS]
        for turn in range(turns // _CONNECTIONS):
            session_id = session_ids[turn % len(session_ids)]
            await connection.exchange(text_turn(session_id), lambda _: None)
        connection.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(_CONNECTIONS):
            tasks.create_task(use(number))

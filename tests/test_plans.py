"""The plans of what every turn asks, on both databases: no cost may grow with a table.

A statement is checked because it is there: every `Direct` of the services, by its module's name.
"""

import importlib
import pkgutil
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg as untyped_asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none
import orjson
import pytest
from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPICursor

from app import services
from app.core.config import Settings
from app.core.database import Database
from app.core.direct import Compiled, Direct
from app.core.round_trips import RoundTrips
from app.core.security import DEFAULT_WORKSPACE_ID, Caller
from app.core.tenancy import Confinement, only
from app.models import utc_now
from app.services import crud
from app.services.turns import event_store, hot, leases
from app.services.turns.live import LiveTurn
from app.services.turns.watching import Watch
from app.state import Providers, serving
from tests.conftest import Postgres, client_of
from tests.filled import SESSIONS, TURNS_EACH, Filled, fill

pytestmark = pytest.mark.anyio
asyncpg: Any = untyped_asyncpg

SMALL_INDEXES = {"ix_turns_lease", "ix_turns_unsettled", "uq_turns_live"}
"""Partial: in them are only the turns that are not settled."""
WITH_VALUES_ONLY = {
    "turns.event_store._PRUNE_EVENTS",
    "turns.event_store._PRUNE_KEYS",
    "turns.audio_store._PRUNE_CLIPS",
    "turns.audio_store._PRUNE_RECORDINGS",
    "usage.requests._FORGET",
}
"""Without their values the planner must think that they drop a third of the table."""
COUNTED = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'messages'"
SCANNED = "SELECT relname FROM pg_stat_user_tables WHERE seq_tup_read > 0 AND n_live_tup > 900"


def statements() -> dict[str, Direct]:
    """Return every statement of the services, by name."""
    found: dict[str, Direct] = {}
    for module in pkgutil.walk_packages(services.__path__, "app.services."):
        if not module.name.startswith("app.services.local_service"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, Direct):
                    found[f"{module.name.removeprefix('app.services.')}.{name}"] = value
    return found


def conditions(filled: Filled) -> dict[str, Any]:
    """Return what is looked for: values of the parameters whose names end in `_`."""
    now = utc_now()
    return {
        "workspace_id_": filled.workspace_id,
        "session_id_": filled.session_id,
        "turn_id_": filled.turn_id,
        "message_id_": filled.message_id,
        "agent_id_": filled.agent_id,
        "owner_id_": filled.owner_id,
        "attempt_": 1,
        "version_": 1,
        "index_": 0,
        "last_": 3,
        "user_seq_": 2 * TURNS_EACH - 1,
        "after_": 0,
        "key_": "key-1-3",
        "bucket_": "key-1",
        "caller_": "key-1",
        "day_": now.date(),
        "minute_": 1,
        "before_": now.replace(year=2000),
        "now_": now,
        "lease_end_": now,
        **dict.fromkeys(("block_", "limit_", "live_", "tokens_", "nanos_", "upload_ms_"), 1),
        **dict.fromkeys((f"{name}_limit_" for name in ("live_turns", "tokens", "nanos")), 9),
        **dict.fromkeys(("upload_ms_limit_", "tokens_more_", "nanos_more_"), 9),
    }


def unknown(compiled: Compiled, known: Mapping[str, Any]) -> set[str]:
    """Return the conditions that have no value."""
    open_places = {name for name in compiled.parameters if compiled.fixed[name] is None}
    return {name for name in open_places if name.endswith("_")} - set(known)


def arguments(compiled: Compiled, known: Mapping[str, Any]) -> list[Any]:
    """Return the values of a statement's places; a condition must have one in `conditions`."""
    # What is written has no part in the plan: it is left NULL.
    named = {
        name: known[name] if name.endswith("_") else None
        for name in compiled.parameters
        if compiled.fixed[name] is None
    }
    return compiled.values(named)


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[Any]:
    """Connect as a transaction pooler wants it."""
    connection = await asyncpg.connect(dsn, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close()


class Explainer:
    """Asks a database for plans, and says what is wrong with them."""

    def __init__(self, connection: Any, *, is_sqlite: bool) -> None:  # noqa: ANN401  # either driver's
        self._connection = connection
        self._is_sqlite = is_sqlite

    async def faults(self, sql: str, values: Sequence[Any], *, generic: bool) -> list[str]:
        """Return what is read without an index that leads to it.

        On Postgres with these values and, where `generic`, also with any.
        """
        if self._is_sqlite:
            explained = f"EXPLAIN QUERY PLAN {sql}"
            rows = await self._connection.exec_driver_sql(explained, tuple(values))
            return [row[-1] for row in rows if not is_search(row[-1])]
        plans = [await self._plan(sql, *values)]
        if generic:
            await self._connection.execute(f"PREPARE checked AS {sql}")
            nulls = ", ".join(["NULL"] * len(values))
            plans.append(await self._plan(f"EXECUTE checked({nulls})"))
            await self._connection.execute("DEALLOCATE checked")
        return [fault for plan in plans for node in nodes(plan) for fault in faults_of(node)]

    async def _plan(self, sql: str, *values: object) -> Any:  # noqa: ANN401  # JSON
        explained = await self._connection.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *values)
        return orjson.loads(explained)[0]["Plan"]


@asynccontextmanager
async def explaining(database: Database) -> AsyncGenerator[Explainer]:
    """On Postgres in a transaction like a turn's: in the role of the row policies."""
    if database.is_sqlite:
        async with database.connection() as connection:
            yield Explainer(connection, is_sqlite=True)
        return
    assert database.url.dsn
    confinement = Confinement()
    confinement.learn(has_role=True)
    dsn = database.url.dsn.get_secret_value()
    async with connected(dsn) as connection:
        with only(DEFAULT_WORKSPACE_ID):
            await connection.execute(f"BEGIN; {confinement.words()}")
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        yield Explainer(connection, is_sqlite=False)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def faults_of(node: dict[str, Any]) -> list[str]:
    kind, index = node["Node Type"], node.get("Index Name", "")
    if kind == "Seq Scan":
        return [f"{kind} of {node['Relation Name']}"]
    if "Index" not in kind or index in SMALL_INDEXES:
        return []
    columns = set(re.findall(r"\b([a-z_]+) (?:=|<|>|<=|>=|IS)", node.get("Index Cond", "")))
    return [] if columns - {"workspace_id"} else [f"{kind} of all in {index}"]


def is_search(step: str) -> bool:
    """Tell whether a step of SQLite's plan finds its rows by more than the workspace."""
    is_narrow = any(index in step for index in SMALL_INDEXES) or "CONSTANT ROW" in step
    is_of_a_table = step.startswith(("SCAN", "SEARCH"))
    is_wide = step.startswith("SCAN") or step.endswith("(workspace_id=?)")
    return is_narrow or not (is_of_a_table and is_wide)


async def test_every_statement_of_a_turn_finds_its_rows_by_an_index(database: Database) -> None:
    known = conditions(await fill(database))
    faults: dict[str, list[str]] = {}
    async with explaining(database) as explainer:
        for name, statement in statements().items():
            compiled = statement.compiled(database.engine.dialect)
            missing = unknown(compiled, known)
            if missing:
                faults[name] = [f"`conditions` has no {missing}"]
                continue
            values = arguments(compiled, known)
            found = await explainer.faults(
                compiled.sql, values, generic=name not in WITH_VALUES_ONLY
            )
            if found:
                faults[name] = found

    assert {"turns.hot.TAKE_PLACES", "turns.leases._RENEW", *WITH_VALUES_ONLY} <= set(statements())
    assert faults == {}


@pytest.mark.postgres
@pytest.mark.parametrize("settings", ["postgres"], indirect=True)  # there it is one statement
async def test_a_session_is_locked_and_read_by_an_index(database: Database) -> None:
    known = conditions(await fill(database))
    asked = [hot.TAKE_PLACES(**known), hot.HISTORY_AND_WAITING(**known)]
    (trip,) = RoundTrips(database.engine.dialect).plan(asked)

    async with explaining(database) as explainer:
        faults = await explainer.faults(trip.sql, trip.values(asked), generic=True)

    assert "xmin" in trip.sql
    assert faults == []


async def test_what_followers_and_pages_ask_finds_its_rows_by_an_index(database: Database) -> None:
    filled = await fill(database)
    caller = Caller(filled.workspace_id)
    asked: list[tuple[str, Sequence[Any]]] = []

    def note(
        _c: Connection, _cursor: DBAPICursor, sql: str, values: Sequence[Any], *_: object
    ) -> None:
        if "messages" in sql or "turn" in sql:
            asked.append((sql, values))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    async with database.reading() as db:
        session = await crud.get_session(db, caller, filled.session_id)
        await crud.list_messages(db, session, after_seq=4, limit=10)
        await crud.list_messages(db, session)
        await crud.list_turns(db, session)
        await crud.get_turn(db, caller, filled.turn_id)
        await event_store.read(db, filled.workspace_id, filled.turn_id, 2)
    pages = len(asked)
    live = LiveTurn(await database.run(leases.find, filled.workspace_id, filled.live_turn_id))
    watch = Watch(database)
    async with anyio.create_task_group() as group:
        changed = live.log.changed
        with watch.on(live):
            group.start_soon(watch.run)
            await changed.wait()
        group.cancel_scope.cancel()
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)

    assert pages == 5
    assert len(asked) > pages
    faults: dict[str, list[str]] = {}
    async with explaining(database) as explainer:
        for sql, values in asked:
            if found := await explainer.faults(sql, values, generic=True):
                faults[sql] = found
    assert faults == {}


async def test_turns_read_no_table_from_its_beginning_to_its_end(
    database: Database, settings: Settings, providers: Providers, request: pytest.FixtureRequest
) -> None:
    if database.is_sqlite:
        return  # counts no scans
    filled = await fill(database)
    async with (
        serving(settings, database, providers) as state,
        client_of(settings, state) as client,
    ):
        for headers in ({}, {"accept": "text/event-stream"}) * 3:
            body = {"session_id": str(filled.session_id), "content": "Hi"}
            reply = await client.post("/messages/text", json=body, headers=headers)
            assert reply.status_code == 200
        page = await client.get(f"/sessions/{filled.session_id}/messages?after_seq=20")
        turn_id = page.json()[-1]["turn_id"]
        await client.get(f"/turns/{turn_id}/events", params={"after": 1})
        await client.post(f"/turns/{turn_id}/cancel")
    await database.dispose()
    postgres: Postgres = request.getfixturevalue("postgres")
    assert database.url.dsn
    name = database.url.dsn.get_secret_value().rpartition("/")[2]
    async with connected(postgres.server.url(name)) as connection:
        # A backend tells what it counted at its end at the latest.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with anyio.fail_after(10):
            while await connection.fetchval(COUNTED) < 2 * SESSIONS * TURNS_EACH + 12:
                await anyio.sleep(0.05)
        scanned = await connection.fetch(SCANNED)

    assert [row["relname"] for row in scanned] == []

"""The plans of what every turn asks, on both databases: no cost may grow with a table.

A statement is checked because it is there: every `PreparedStatement` of the services, by its
module's name.
"""

import importlib
import pkgutil
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
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
from app.core.database.statement_batching import RoundTripPlanner
from app.core.database.statements import CompiledStatement, PreparedStatement
from app.core.database.workspace_scope import RowLevelSecurity, workspace_scope
from app.core.security import DEFAULT_WORKSPACE_ID, Caller, CallerKind
from app.models import TurnStatus, utc_now
from app.services import crud
from app.services.turns.execution import abandoned_forks
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.remote_turns import RemoteTurnWatcher
from app.services.turns.session_events import SessionEvents
from app.services.turns.storage import event_store, leases, turn_statements
from app.state import Providers, build_state
from tests.conftest import Postgres
from tests.support.application import client_of
from tests.support.filled_database import SESSIONS, TURNS_EACH, Filled, fill
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.new_database]
asyncpg: Any = untyped_asyncpg

SMALL_INDEXES = {
    "ix_turns_lease", "ix_turns_unsettled", "ix_turns_unsuccessful", "uq_turns_live",
    "ix_tool_calls_waiting", "ix_tool_calls_inbox",
}  # fmt: skip
"""Partial: in them are only turns that are not settled or did not complete, and waiting calls."""
WITH_VALUES_ONLY = {
    "turns.storage.event_store._PRUNE_EVENTS",
    "turns.storage.idempotency_keys._PRUNE",
    "turns.storage.audio_store._PRUNE_CLIPS",
    "turns.storage.audio_store._PRUNE_RECORDINGS",
    "usage.rate_limits._PRUNE",
}
"""Without their values the planner must think that they drop a third of the table."""
FIRST_ROWS = {"crud.session_lookup._ANY_AGENTS"}
"""They read the first two rows of a workspace that are not archived."""
COUNTED = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 'messages'"
SCANNED = (
    "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE seq_tup_read > 0 AND n_live_tup > 900"
)
AFTER_A_START = {"sessions": abandoned_forks.ROUNDS}
"""How often maintenance reads a table whole after a start, whatever turns there are."""


def statements() -> dict[str, PreparedStatement]:
    """Return every statement of the services, by name."""
    found: dict[str, PreparedStatement] = {}
    for module in pkgutil.walk_packages(services.__path__, "app.services."):
        if not module.name.startswith("app.services.local_service"):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, PreparedStatement):
                    found[f"{module.name.removeprefix('app.services.')}.{name}"] = value
    return found


def conditions(filled: Filled) -> dict[str, Any]:
    """Return what is looked for: values of the parameters whose names end in `_`."""
    now = utc_now()
    return {
        "workspace_id_": filled.workspace_id,
        "session_id_": filled.session_id,
        "turn_id_": filled.turn_id,
        "turn_ids_": [filled.turn_id],
        "message_id_": filled.message_id,
        "agent_id_": filled.agent_id,
        "owner_id_": filled.owner_id,
        "attempt_": 1,
        "version_": 1,
        "index_": 0,
        "last_": 3,
        "user_seq_": 2 * TURNS_EACH - 1,
        "after_": 0,
        "tool_id_": filled.turn_id,
        "server_id_": filled.turn_id,
        "call_id_": filled.turn_id,
        "file_id_": filled.file_id,
        "owner_": "user-1",
        "agent_name_": "Ada",
        "count_": 1,
        "tool_version_": 1,
        "name_": "SHOP_KEY",
        "slug_": "ada",
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


def unknown(compiled: CompiledStatement, known: Mapping[str, Any]) -> set[str]:
    """Return the conditions that have no value."""
    open_places = {name for name in compiled.parameters if compiled.defaults[name] is None}
    return {name for name in open_places if name.endswith("_")} - set(known)


def arguments(compiled: CompiledStatement, known: Mapping[str, Any]) -> list[Any]:
    """Return the values of a statement's places; a condition must have one in `conditions`."""
    # What is written has no part in the plan: it is left NULL.
    named = {
        name: known[name] if name.endswith("_") else None
        for name in compiled.parameters
        if compiled.defaults[name] is None
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
    confinement = RowLevelSecurity()
    confinement.set_has_role(has_role=True)
    dsn = database.url.dsn.get_secret_value()
    async with connected(dsn) as connection:
        with workspace_scope(DEFAULT_WORKSPACE_ID):
            await connection.execute(f"BEGIN; {confinement.begin_settings()}")
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
    is_derived = step.split()[1:2] in (["newest"], ["sized"]) or "(subquery-" in step
    is_of_a_table = step.startswith(("SCAN", "SEARCH")) and not is_derived
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
            if found and name not in FIRST_ROWS:
                faults[name] = found

    assert {
        "turns.storage.turn_statements.ALLOCATE_SEQ",
        "turns.storage.leases._RENEW",
        *WITH_VALUES_ONLY,
        *FIRST_ROWS,
    } <= set(statements())
    assert faults == {}


@pytest.mark.postgres
@pytest.mark.parametrize("settings", ["postgres"], indirect=True)  # there it is one statement
async def test_a_session_is_locked_and_read_by_an_index(database: Database) -> None:
    known = conditions(await fill(database))
    asked = [turn_statements.ALLOCATE_SEQ(**known), turn_statements.HISTORY_AND_WAITING(**known)]
    (trip,) = RoundTripPlanner(database.engine.dialect).plan(asked)

    async with explaining(database) as explainer:
        faults = await explainer.faults(trip.sql, trip.values(asked), generic=True)

    assert "xmin" in trip.sql
    assert faults == []


def wanted_turns(filled: Filled) -> list[crud.TurnFilter]:
    now = utc_now()
    statuses = (TurnStatus.FAILED, TurnStatus.CANCELLED, TurnStatus.IN_PROGRESS)
    return [
        *(crud.TurnFilter(status=status) for status in statuses),
        crud.TurnFilter(session_id=filled.session_id),
        crud.TurnFilter(agent_id=filled.agent_id, status=TurnStatus.COMPLETED),
        crud.TurnFilter(
            created_from=now - timedelta(days=9), created_before=now - timedelta(days=8)
        ),
    ]


async def follow_a_session(
    database: Database, caller: Caller, filled: Filled, asked: Sequence[tuple[str, Sequence[Any]]]
) -> None:
    """Ask what a follower of a session asks, and the poll for all that are followed."""
    events = SessionEvents(database, lambda: False)
    followed = events.follow(caller, filled.session_id, 60)
    async with events.polling(), aclosing(followed):
        assert len(await anext(followed)) > 0
        async with anyio.create_task_group() as group:
            group.start_soon(anext, followed)
            await until(lambda: "OUTER JOIN" in asked[-1][0])
            group.cancel_scope.cancel()


async def test_what_followers_and_pages_ask_finds_its_rows_by_an_index(database: Database) -> None:
    filled = await fill(database)
    caller = Caller(filled.workspace_id)
    user = Caller(filled.workspace_id, CallerKind.USER, user_id="user-501")
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
        await crud.list_turns(db, session, after_seq=1, limit=10)
        await crud.get_turn(db, caller, filled.turn_id)
        for wanted in wanted_turns(filled):
            await crud.find_turns(db, caller, wanted, before_id=None, limit=100)
            await crud.find_turns(db, user, wanted, before_id=filled.turn_id, limit=100)
        await event_store.read(db, filled.workspace_id, filled.turn_id, 2)
    pages = len(asked)
    live = LiveTurn(await database.run(leases.find, filled.workspace_id, filled.live_turn_id))
    watch = RemoteTurnWatcher(database)
    async with anyio.create_task_group() as group:
        changed = live.log.changed
        with watch.watch(live):
            group.start_soon(watch.run)
            await changed.wait()
        group.cancel_scope.cancel()
    await follow_a_session(database, caller, filled, asked)
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)

    assert pages == 5 + 2 * len(wanted_turns(filled))
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
        pytest.skip("SQLite counts no scans")
    filled = await fill(database)
    # What a workspace stores is measured once a minute, and that reads all of it.
    unmeasured = settings.model_copy(update={"limit_stored_mb_per_workspace": 0})
    async with (
        build_state(unmeasured, database, providers) as state,
        client_of(unmeasured, state) as client,
    ):
        for headers in ({}, {"accept": "text/event-stream"}) * 3:
            body = {"session_id": str(filled.session_id), "content": "Hi"}
            reply = await client.post("/messages/text", json=body, headers=headers)
            assert reply.status_code == 200
        page = await client.get(f"/sessions/{filled.session_id}/messages")
        turn_id = page.json()[-1]["turn_id"]
        await client.get(f"/turns/{turn_id}/events", params={"after": 1})
        await client.post(f"/turns/{turn_id}/cancel")
    await database.dispose()
    postgres: Postgres = request.getfixturevalue("postgres")
    assert database.url.dsn
    name = database.url.dsn.get_secret_value().rpartition("/")[2].partition("?")[0]
    async with connected(postgres.server.url(name)) as connection:
        # A backend tells what it counted at its end at the latest.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

        async def all_is_counted() -> bool:
            counted: int = await connection.fetchval(COUNTED)
            return counted >= 2 * SESSIONS * TURNS_EACH + 12

        await until(all_is_counted)
        scans = {row["relname"]: row["seq_scan"] for row in await connection.fetch(SCANNED)}

    assert {
        name: count for name, count in scans.items() if count > AFTER_A_START.get(name, 0)
    } == {}

"""Measures the own share of a step with one HTTP tool, whose tool and model have no latency."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg as untyped_asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bench.processes import cpu_seconds
from bench.sessions import ServerSessions
from bench.site import DATABASES, Place, Site
from bench.wire import ClientConnection, run, text_turn

asyncpg: Any = untyped_asyncpg
Cells = list[list[str]]

_SESSIONS = 40
_ROUNDS = 6
_ROUND_TURNS = 80
_WARM_UP = 80
_CONNECTIONS = 8
_CPU_LIMIT_MS, _COMMITS_LIMIT, _READ_COMMITS_LIMIT = 1.5, 3, 1
_COMMITTED_TURNS = 40
_CHECKPOINTS = 0.25
"""So many of a slow turn's transactions store its events meanwhile."""
_WRITERS = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
"""Transactions that only read get no number."""


@dataclass(slots=True)
class _Agent:
    """An agent's sessions, and what its turns cost in each round."""

    name: str
    sessions: Sequence[str]
    cpu_ms: list[float]
    commits: float = 0

    @property
    def typical_cpu_ms(self) -> float:
        """The median round."""
        return sorted(self.cpu_ms)[len(self.cpu_ms) // 2]


def step(site: Site) -> Cells:
    """Own share of a step with one HTTP tool: CPU over two plain turns, commits over one."""
    cells = [
        ["database", "effect", "plain turn, CPU-ms", "with the tool", "own share",
         f"<= {_CPU_LIMIT_MS}", "commits of the step", "limit kept"],
    ]  # fmt: skip
    for database in DATABASES:
        place = site.place(database)
        allowed = f"127.0.0.1:{site.provider.port}"
        with site.server(place, TOOLS_ALLOWED_ADDRESSES=allowed) as server:
            agents = [_Agent("plain", _plain(server.port), [])]
            agents += [
                _Agent(effect, _with_tool(server.port, site.provider.port, effect), [])
                for effect in ("read", "idempotent", "once")
            ]
            for agent in agents:
                run(_talk(server.port, agent.sessions, _WARM_UP))
            for _ in range(_ROUNDS):  # in turns, so that the machine is the same for all
                for agent in agents:
                    _measure(server.port, server.pid, agent)
            if place.name:
                for agent in agents:
                    agent.commits = _commits(site, place, server.port, agent)
        cells += _rows(database, agents, counts_commits=bool(place.name))
    return cells


def _rows(database: str, agents: Sequence[_Agent], *, counts_commits: bool) -> Cells:
    plain = agents[0]
    rows: Cells = []
    for agent in agents[1:]:
        own = agent.typical_cpu_ms - 2 * plain.typical_cpu_ms
        commits = agent.commits - plain.commits
        limit = _READ_COMMITS_LIMIT if agent.name == "read" else _COMMITS_LIMIT
        rows.append(
            [
                database,
                agent.name,
                f"{plain.typical_cpu_ms:.2f}",
                f"{agent.typical_cpu_ms:.2f}",
                f"{own:.2f}",
                "yes" if own <= _CPU_LIMIT_MS else "NO",
                f"{commits:.2f}" if counts_commits else "",
                ("yes" if commits <= limit + _CHECKPOINTS else "NO") if counts_commits else "",
            ]
        )
    return rows


def _plain(port: int) -> list[str]:
    return ServerSessions(port).make("tokens-20", _SESSIONS)


def _with_tool(port: int, provider_port: int, effect: str) -> list[str]:
    tool = {
        "name": f"work_{effect}",
        "description": "Does some work.",
        "kind": "http",
        "effect": effect,
        "approval": "never",
        "http": {"method": "POST", "url": f"http://127.0.0.1:{provider_port}/work"},
    }
    return ServerSessions(port).make("tokens-20", _SESSIONS, tool=tool)


def _measure(port: int, pid: int, agent: _Agent) -> None:
    before = cpu_seconds(pid)
    run(_talk(port, agent.sessions, _ROUND_TURNS))
    agent.cpu_ms.append((cpu_seconds(pid) - before) * 1000 / _ROUND_TURNS)


def _commits(site: Site, place: Place, port: int, agent: _Agent) -> float:
    """Return the transactions that write for a turn; one turn at a time, so that none is slow."""

    async def count() -> float:
        connection = await asyncpg.connect(site.postgres.url(place.name or ""))
        try:
            before = await connection.fetchval(_WRITERS)
            await _talk(port, agent.sessions, _COMMITTED_TURNS, connections=1)
            return float(await connection.fetchval(_WRITERS) - before)
        finally:
            await connection.close()

    return run(count()) / _COMMITTED_TURNS


async def _talk(
    port: int, sessions: Sequence[str], turns: int, connections: int = _CONNECTIONS
) -> None:
    """Send turns over several connections, never two of a session at once."""
    opened = [await ClientConnection.open(port) for _ in range(connections)]

    async def use(number: int, connection: ClientConnection) -> None:
        own = sessions[number::connections]
        for each in range(turns // connections):
            pieces: list[bytes] = []
            status = await connection.exchange(text_turn(own[each % len(own)]), pieces.append)
            if status != 200:  # noqa: PLR2004  # OK
                raise RuntimeError(f"{status}: {b''.join(pieces).decode()}")
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number, connection in enumerate(opened):
            group.create_task(use(number, connection))

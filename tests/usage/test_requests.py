"""Requests of a minute: counted by caller, for all servers together."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from sqlalchemy import func, select

from app.core.config import Settings
from app.core.database import Database
from app.core.limits import NO_LIMITS, KeyLimits, Limits
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID, Caller, CallerKind
from app.models import RequestWindow
from app.services.usage import AccountDirectory, RequestLimiter
from app.services.usage.errors import RateLimited
from tests.conftest import StartServer
from tests.support.application import client_of

pytestmark = pytest.mark.anyio

NOON = 1_800_000_000.0


def accounts(requests_per_minute: int) -> AccountDirectory:
    return AccountDirectory(KeyLimits(Limits(requests_per_minute), NO_LIMITS))


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


async def admitted(limiter: RequestLimiter, tries: int, caller: Caller = ADMIN) -> int:
    """How many of so many requests at once come in."""
    count = 0

    async def ask() -> None:
        nonlocal count
        try:
            await limiter.admit(caller)
        except RateLimited:
            return
        count += 1

    async with anyio.create_task_group() as group:
        for _ in range(tries):
            group.start_soon(ask)
    return count


@asynccontextmanager
async def second_database(settings: Settings) -> AsyncGenerator[Database]:
    database = Database.from_settings(settings)
    yield database
    await database.dispose()


@pytest.mark.parametrize("limit", [1, 7, 20, 100])
async def test_as_many_as_the_limit_come_in(database: Database, limit: int) -> None:
    clock = Clock()
    limiter = RequestLimiter(database, accounts(limit), clock)

    first_minute = await admitted(limiter, limit + 30)
    clock.now += 60
    next_minute = await admitted(limiter, limit + 30)

    assert (first_minute, next_minute) == (limit, limit)


async def test_two_servers_together_admit_no_more_than_the_limit(
    database: Database, settings: Settings
) -> None:
    if database.is_sqlite:
        pytest.skip("a SQLite file has one server")
    clock = Clock()
    async with second_database(settings) as own:
        first = RequestLimiter(database, accounts(100), clock)
        second = RequestLimiter(own, accounts(100), clock)
        counts = [0, 0]

        async def ask(server: int) -> None:
            for _ in range(15):
                counts[server] += await admitted((first, second)[server], 10)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, 0)
            group.start_soon(ask, 1)

    assert sum(counts) == 100


async def test_server_whose_clock_is_behind_counts_in_the_minute_of_the_others(
    database: Database, settings: Settings
) -> None:
    if database.is_sqlite:
        pytest.skip("a SQLite file has one server")
    ahead, behind = Clock(), Clock()
    ahead.now += 60
    async with second_database(settings) as own:
        first = await admitted(RequestLimiter(database, accounts(10), ahead), 6)
        second = await admitted(RequestLimiter(own, accounts(10), behind), 10)

    assert (first, second) == (6, 4)


async def test_busy_server_seldom_asks_the_database(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("the only server of a SQLite file asks the database never")
    limiter = RequestLimiter(database, accounts(200), Clock())

    await admitted(limiter, 5)
    async with database.reading() as db:
        taken = await db.scalar(select(RequestWindow.taken))
    await admitted(limiter, 5)
    async with database.reading() as db:
        assert await db.scalar(select(RequestWindow.taken)) == taken == 10


async def test_callers_are_counted_apart(database: Database) -> None:
    limiter = RequestLimiter(database, accounts(3), Clock())
    key = Caller(DEFAULT_WORKSPACE_ID, key_id="key00001", limits=Limits(5))
    free = Caller(DEFAULT_WORKSPACE_ID, key_id="key00002", limits=Limits(0))
    user = Caller(DEFAULT_WORKSPACE_ID, CallerKind.USER, user_id="key00001")

    counts = [await admitted(limiter, 10, caller) for caller in (ADMIN, key, free, user)]

    assert counts == [3, 5, 10, 3]


async def test_callers_who_left_are_forgotten(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("the only server of a SQLite file stores no windows")
    clock = Clock()
    limiter = RequestLimiter(database, accounts(5), clock)
    for number in range(4):
        await limiter.admit(Caller(DEFAULT_WORKSPACE_ID, key_id=f"key{number}"))
    clock.now += 3600
    await limiter.admit(ADMIN)

    async with database.reading() as db:
        assert await db.scalar(select(func.count()).select_from(RequestWindow)) == 1


async def test_every_response_says_how_the_caller_stands(
    second_server: StartServer, settings: Settings
) -> None:
    async with (
        second_server(limit_requests_per_minute=3) as state,
        client_of(settings, state) as client,
    ):
        responses: list[httpx2.Response] = [await client.get("/agents") for _ in range(8)]
        health = await client.get("/health/live")

    accepted = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 429]
    assert len(accepted) in {3, 4, 5, 6}  # a minute may end in between
    assert int(accepted[0].headers["x-ratelimit-remaining"]) == 2
    for response in responses:
        assert response.headers["x-ratelimit-limit"] == "3"
        assert response.headers["x-ratelimit-resource"] == "requests"
        assert int(response.headers["x-ratelimit-reset"]) % 60 == 0
        assert len(response.headers.get_list("x-ratelimit-limit")) == 1
    for response in refused:
        assert response.json()["code"] == "rate-limited"
        assert response.headers["x-ratelimit-remaining"] == "0"
        assert 1 <= int(response.headers["retry-after"]) <= 60
    assert "x-ratelimit-limit" not in health.headers
    assert health.status_code == 200


async def test_error_before_the_limit_was_asked_has_no_such_header(
    settings: Settings, second_server: StartServer
) -> None:
    async with second_server() as state, client_of(settings, state, peer="192.0.2.1") as client:
        response = await client.get("/agents")

    assert response.status_code == 401
    assert "x-ratelimit-limit" not in response.headers

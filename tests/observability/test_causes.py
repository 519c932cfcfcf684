"""Why a turn was slow or failed: the log alone names the cause.

`diagnose` reads lines as `docs/observability.md` says, and is told nothing of what was done.
"""

import asyncio
import resource
import socket
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import anyio.to_thread
import httpx2
import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import update
from starlette.types import Message
from typing_extensions import override

from app.core.config import Settings
from app.core.database import Database
from app.main import create_app
from app.models import Turn
from app.services.ports import ChatFinished, ChatRequest, TextDelta
from app.services.turns.storage.acceptance import QUEUE_LIMIT
from tests.observability.records import Line
from tests.observability.world import World, world_of
from tests.support import planted_secrets
from tests.support.fake_providers import FakeChatModel
from tests.support.provider import Fault, Provider
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

SLOW_MS = 500


def diagnose(lines: list[Line]) -> str:
    """Name the cause of the turn or request that went wrong."""
    if [line for line in lines if line["message"].startswith("provider not asked")]:
        return "breaker open"
    failures = [line for line in lines if line["message"] == "provider failed"]
    for line in failures:
        if not line["retried"]:
            return of_provider(line)
    if failures:
        return f"retried after {of_provider(failures[0])}"
    causes = [of_turn(line, lines) for line in lines if line["message"] == "turn ended"]
    causes += [of_request(line) for line in lines if line["message"] == "request refused"]
    return next(filter(None, causes), "nothing")


def of_provider(line: Line) -> str:
    cause, code = line.get("cause") or "", line["code"]
    if "gaierror" in cause:
        return "provider's name unknown"
    if "SSL" in cause:
        return "no TLS with provider"
    if "ConnectionRefusedError" in cause:
        return "provider refuses connections"
    if code == "provider-timeout":
        return "provider fell silent" if "fell silent" in line["detail"] else "provider timeout"
    if code == "upstream-incomplete":
        return "stream cut off"
    return f"{code} {line.get('http_status')}"


def of_turn(line: Line, lines: list[Line]) -> str | None:
    match line.get("code"):
        case None:
            return of_slow_turn(line)
        case "turn-cancelled":
            left = [each for each in lines if each.get("client_left")]
            return "client left" if left else "cancelled"
        case "upstream-incomplete":
            return "empty answer"
        case "internal-error":
            return bug_of(line, lines)
        case code:
            return code


def of_slow_turn(line: Line) -> str | None:
    stages = {
        "database slow": max(line["accept_ms"], line["settle_ms"]),
        "waited for the session's turn before": line.get("queue_ms", 0),
        "slow first token": line.get("first_token_ms", 0),
    }
    return next((cause for cause, ms in stages.items() if ms > SLOW_MS), None)


def bug_of(line: Line, lines: list[Line]) -> str:
    texts = [each["exception"] for each in lines if each.get("turn_id") == line["turn_id"]
             and "exception" in each]  # fmt: skip
    return f"bug: {texts[0].splitlines()[-1].partition(':')[0]}"


def of_request(line: Line) -> str:
    if line["code"] != "storage-unavailable":
        return line["code"]
    cause = line["cause"]
    if "ConnectionRefusedError" in cause:
        return "database away"
    return "disk full or broken" if "SQLITE_IOERR" in cause or "SQLITE_FULL" in cause else cause


Action = Callable[[World], Awaitable[Any]]


async def say(world: World) -> None:
    await world.say()


def with_fault(fault: Fault, times: int | None = None) -> Action:
    async def act(world: World) -> None:
        world.provider.fail(fault, times=times)
        await world.say()

    return act


async def fail_six_times(world: World) -> None:
    world.provider.fail(Fault.STATUS_500, times=None)
    await world.say()
    await world.say()
    world.lines.text.clear()
    await world.say()


async def answer_nothing(world: World) -> None:
    world.provider.chat.text = []
    await world.say()


async def answer_late(world: World) -> None:
    world.provider.chat.first_byte_delay_seconds = SLOW_MS / 1000 + 0.2
    await world.say()


async def while_a_turn_runs(world: World, act: Callable[[UUID], Awaitable[Any]]) -> None:
    """Do something while a turn's answer comes."""
    world.provider.chat.token_delay_seconds = 0.12
    async with anyio.create_task_group() as group:
        group.start_soon(world.say)
        await asked(world)
        (turn,) = (await world.client.get("/turns?status=in_progress")).json()
        await act(UUID(turn["id"]))


async def asked(world: World) -> None:
    """Wait until the provider has a question."""

    def wait() -> None:
        assert world.provider.wait_until(lambda: bool(world.provider.to("chat")))

    await anyio.to_thread.run_sync(wait)


async def cancel(world: World) -> None:
    await while_a_turn_runs(world, lambda id_: world.client.post(f"/turns/{id_}/cancel"))


async def lose_lease(world: World) -> None:
    async def take_over(turn_id: UUID) -> None:
        async with world.state["database"].transaction() as db:
            await db.execute(update(Turn).where(Turn.id == turn_id).values(attempt=2))

    async def act(turn_id: UUID) -> None:
        await take_over(turn_id)
        world.state["turns"].drain()  # nobody else will end it, and it is not waited for

    await while_a_turn_runs(world, act)


async def be_busy(world: World) -> None:
    await while_a_turn_runs(world, lambda _id: world.say(on_busy="reject"))


async def wait_in_the_queue(world: World) -> list[Line]:
    await while_a_turn_runs(world, lambda _id: world.say())
    return world.lines.named("turn ended")[-1:]


async def fill_the_queue(world: World) -> list[Line]:
    """Return what is logged of the message that finds the queue full."""
    answers: list[httpx2.Response] = []

    async def act(_id: UUID) -> None:
        engine = world.state["turns"]
        async with anyio.create_task_group() as group:
            for _ in range(QUEUE_LIMIT):
                group.start_soon(world.say)
            await until(lambda: engine.turn_counts()["queued"] >= QUEUE_LIMIT)
            answers.append(await world.say())
            group.cancel_scope.cancel()
        world.provider.chat.token_delay_seconds = 0

    await while_a_turn_runs(world, act)
    request_id = answers[0].headers["request-id"]
    return [line for line in world.lines.all if line.get("request_id") == request_id]


async def drain(world: World) -> None:
    world.state["turns"].drain()
    await world.say()


async def leave(world: World) -> None:
    """Go away before the answer, as a browser does."""
    body = {"session_id": world.session_id, "content": "Hi", "on_disconnect": "cancel"}
    sent = [
        {"type": "http.request", "body": orjson.dumps(body), "more_body": False},
        {"type": "http.disconnect"},
    ]
    world.provider.chat.first_byte_delay_seconds = 0.45

    async def receive() -> Message:
        if len(sent) == 1:
            await asked(world)
        return sent.pop(0) if sent else {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        return

    scope = {
        "type": "http", "method": "POST", "path": "/messages/text", "raw_path": b"/messages/text",
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("test", 80), "state": dict[str, Any](world.state),
    }  # fmt: skip
    await create_app(world.settings)(scope, receive, send)
    await anyio.lowlevel.checkpoint()  # the line of a request comes soon after it


CAUSES: dict[str, Action] = {
    "provider-unauthorized 401": with_fault(Fault.STATUS_401),
    "provider-unauthorized 429": with_fault(Fault.STATUS_429_QUOTA),
    "provider-rate-limited 429": with_fault(Fault.STATUS_429),
    "provider-unavailable 500": with_fault(Fault.STATUS_500),
    "provider-rejected 404": with_fault(Fault.STATUS_404),
    "provider-rejected 413": with_fault(Fault.STATUS_413),
    "provider timeout": with_fault(Fault.STALL_BEFORE_HEADERS),
    "provider fell silent": with_fault(Fault.STALL_AT_TOKEN),
    "stream cut off": with_fault(Fault.RESET_AT_TOKEN),
    "retried after provider-unavailable 503": with_fault(Fault.STATUS_503, times=1),
    "empty answer": answer_nothing,
    "breaker open": fail_six_times,
    "slow first token": answer_late,
    "cancelled": cancel,
    "client left": leave,
    "session-busy": be_busy,
    "session-queue-full": fill_the_queue,
    "waited for the session's turn before": wait_in_the_queue,
    "server-draining": drain,
    "nothing": say,
}


@pytest.mark.parametrize("cause", CAUSES)
async def test_the_log_names_the_cause(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider, cause: str
) -> None:
    async with world_of(sqlite_settings, sqlite_database, provider) as world:
        lines = await CAUSES[cause](world) or world.lines.all

    assert diagnose(lines) == cause
    assert not [line for line in lines if "exception" in line], "no bug, so no traceback"
    planted_secrets.search(planted_secrets.Place.LOG, "\n".join(world.lines.text), cause)


async def test_the_log_names_a_turn_that_another_server_took_over(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    async with world_of(sqlite_settings, sqlite_database, provider) as world:
        await lose_lease(world)
        lines = world.lines.all

    assert diagnose(lines) == "turn-lost"


class BrokenChatModel(FakeChatModel):
    """Has a bug: raises what no port may."""

    @override
    async def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        yield TextDelta("One")
        raise KeyError("a bug")


async def test_the_log_names_a_bug_with_one_traceback_and_the_ids(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    broken = BrokenChatModel()
    async with world_of(sqlite_settings, sqlite_database, provider, chat_model=broken) as world:
        answer = await world.say()
        lines = world.lines.all

    tracebacks = [line for line in lines if "exception" in line]
    assert diagnose(lines) == "bug: KeyError"
    assert len(tracebacks) == 1
    assert tracebacks[0]["request_id"] == answer.headers["request-id"]
    assert tracebacks[0]["turn_id"] == answer.json()["turn_id"]


LIMITS: dict[str, dict[str, Any]] = {
    "budget-exhausted": {"limit_tokens_per_day": 10},
    "rate-limited": {"limit_requests_per_minute": 3},
}


@pytest.mark.parametrize("cause", LIMITS)
async def test_the_log_names_the_limit_that_was_reached(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider, cause: str
) -> None:
    limited = sqlite_settings.model_copy(update=LIMITS[cause])
    async with world_of(limited, sqlite_database, provider) as world:
        for _ in range(4):
            await world.say()
        lines = world.lines.all

    refused = [line for line in lines if line["message"] == "request refused"]
    assert refused[-1]["code"] == cause
    assert refused[-1]["caller"] == "admin"


@pytest.mark.parametrize(
    ("base_url", "cause"),
    [
        ("http://no-such-host.invalid/v1", "provider's name unknown"),
        ("https://127.0.0.1:{port}/v1", "no TLS with provider"),
        ("http://127.0.0.1:{closed}/v1", "provider refuses connections"),
    ],
)
async def test_the_log_names_why_the_provider_cannot_be_reached(
    sqlite_settings: Settings,
    sqlite_database: Database,
    provider: Provider,
    base_url: str,
    cause: str,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        closed = listener.getsockname()[1]
    url = base_url.format(port=provider.port, closed=closed)
    async with world_of(sqlite_settings, sqlite_database, provider, base_url=url) as world:
        await world.say()
        lines = world.lines.all

    assert diagnose(lines) == cause
    failed = [line for line in lines if line["message"] == "provider failed"]
    assert [line["attempt"] for line in failed] == [1, 2, 3]
    assert [line["retried"] for line in failed] == [True, True, False]
    assert {line["host"] for line in failed} == {url.split("/")[2]}
    (ended,) = world.lines.named("turn ended")
    assert {name for name in ended if name.startswith("chat_attempt")} == {
        f"chat_attempt_{number}_ms" for number in (1, 2, 3)
    }


async def test_the_log_names_a_database_that_is_slow(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    path = sqlite_settings.parsed_database_url.sqlite_path
    assert path
    async with world_of(sqlite_settings, sqlite_database, provider) as world:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # as a backup that takes its time
            async with anyio.create_task_group() as group:
                group.start_soon(world.say)
                await anyio.sleep(SLOW_MS / 1000 + 0.2)
                other.execute("ROLLBACK")
        lines = world.lines.all

    assert diagnose(lines) == "database slow"


async def test_the_log_names_a_disk_that_takes_no_more(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    path = sqlite_settings.parsed_database_url.sqlite_path
    assert path
    async with world_of(sqlite_settings, sqlite_database, provider) as world:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = Path(f"{path}-wal").stat().st_size  # noqa: ASYNC240
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
        try:
            answer = await world.say("x" * 150_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        lines = world.lines.all

    assert answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE
    assert diagnose(lines) == "disk full or broken"


class Relay:
    """A TCP connection's way to a database, which can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, ours]
        with suppress(OSError):
            await asyncio.gather(pipe(reader, ours), pipe(theirs, writer))


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.mark.postgres
@pytest.mark.parametrize("settings", ["postgres"], indirect=True)
async def test_the_log_names_a_database_that_is_away(
    settings: Settings, provider: Provider
) -> None:
    assert settings.database_url
    url = urlsplit(settings.database_url.get_secret_value())
    relay = Relay(url.hostname or "", url.port or 0)
    await relay.open()
    netloc = f"{url.netloc.rpartition('@')[0]}@127.0.0.1:{relay.port}"
    relayed = SecretStr(url._replace(netloc=netloc).geturl())
    settings = settings.model_copy(update={"database_url": relayed})
    database = Database.from_settings(settings)
    async with world_of(settings, database, provider) as world:

        async def act(_id: UUID) -> None:
            await relay.cut()
            await world.say()
            world.state["turns"].drain()  # so that the turn is given up soon

        await while_a_turn_runs(world, act)
        lines = world.lines.all
    await database.dispose()

    refused = [line for line in lines if line["message"] == "request refused"]
    assert diagnose(refused) == "database away"
    assert world.lines.named("the end of a turn waits for the database")
    away = world.lines.named("the database is away")
    assert len(away) == 1, "not a line each half second"
    assert not [line for line in lines if "exception" in line]

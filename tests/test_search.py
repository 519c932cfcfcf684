"""A search of `GET /sessions?q=`: bounded, and blind to what its caller may not see."""

import asyncio
import time
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import insert, text

from app.core.config import Settings
from app.core.database import Database
from app.core.database.concurrency_limits import CallerSlots, SearchBusy, SearchTooSlow, search_busy
from app.core.security import ADMIN, CallerKind
from app.models import Message, MessageStatus, Modality, Role, new_id
from app.services import crud
from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio


async def open_session(
    client: httpx2.AsyncClient, agent_id: str, user_id: str | None = None
) -> str:
    body = {"agent_id": agent_id, "user_id": user_id}
    return (await client.post("/sessions", json=body)).json()["id"]


async def say(database: Database, session_id: str, *texts: str) -> None:
    """Store messages of a session without running turns."""
    async with database.transaction() as db:
        await db.execute(
            insert(Message),
            [
                {
                    "workspace_id": ADMIN.workspace_id, "id": new_id(),
                    "session_id": UUID(session_id), "seq": seq, "role": Role.USER,
                    "modality": Modality.TEXT, "status": MessageStatus.COMPLETED,
                    "content": content,
                }
                for seq, content in enumerate(texts, 1)
            ],
        )  # fmt: skip


async def found(client: httpx2.AsyncClient, words: str, **filters: str) -> list[str]:
    response = await client.get("/sessions", params={"q": words, **filters})
    assert response.status_code == 200, response.text
    return [session["id"] for session in response.json()]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Привет, мир", "привет"),
        ("ΚΑΛΗΜΈΡΑ κόσμε", "καλημέρα"),
        ("ÄRGER mit Ünal", "ärger ünal"),
        ("Viele Grüße", "GRÜßE"),
        ("Viele Grüße", "viele grüße"),
        ("İstanbul'da ÇAY", "çay"),
        ("Plain WORDS", "words plain"),
        ("50% of a_b", "50% a_b"),
        ("100%_Größe\\", "100%_größe\\"),
        ("Un Café", unicodedata.normalize("NFD", "café")),
        (unicodedata.normalize("NFD", "Un Café"), "café"),
        (unicodedata.normalize("NFD", "Việt Nam"), "việt"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
    ],
)
async def test_letters_of_all_scripts_fold(
    client: httpx2.AsyncClient, database: Database, agent_id: str, written: str, words: str
) -> None:
    session_id, other_id = [await open_session(client, agent_id) for _ in range(2)]
    titled = await client.post("/sessions", json={"agent_id": agent_id, "title": written})
    await say(database, session_id, written)
    await say(database, other_id, "something else")

    assert set(await found(client, words)) == {session_id, titled.json()["id"]}


async def test_end_user_finds_their_own_sessions_alone(
    client: httpx2.AsyncClient, database: Database, agent_id: str
) -> None:
    mine = await open_session(client, agent_id, "alice")
    theirs = await open_session(client, agent_id, "bob")
    await say(database, mine, "a purple boat")
    await say(database, theirs, "a purple car")
    alice = replace(ADMIN, kind=CallerKind.USER, user_id="alice")

    async def search(words: str) -> list[UUID]:
        async with database.searching("alice") as db:
            sessions = await crud.list_sessions(
                db, alice, crud.SessionFilter(search=words), limit=10
            )
        return [session.id for session in sessions]

    assert await search("purple") == [UUID(mine)]
    assert await search("purple car") == []
    assert await found(client, "purple", user_id="bob") == [theirs]


async def test_equal_words_count_once_and_many_words_are_refused(
    client: httpx2.AsyncClient, database: Database, agent_id: str
) -> None:
    session_id = await open_session(client, agent_id)
    await say(database, session_id, "é à la carte")

    assert await found(client, "é É " * 50) == [session_id]
    refused = await client.get("/sessions", params={"q": " ".join(map(chr, range(97, 114)))})

    assert refused.status_code == 422
    assert refused.json()["code"] == "search-invalid"


async def test_search_time_does_not_tell_what_others_say(
    client: httpx2.AsyncClient, database: Database, agent_id: str
) -> None:
    mine = await open_session(client, agent_id, "alice")
    await say(database, mine, *["my own words " * 20] * 20)
    for number in range(20):
        theirs = await open_session(client, agent_id, f"user-{number}")
        await say(database, theirs, *["secretly orchid и привет " + "é " * 4000] * 40)
    alice = replace(ADMIN, kind=CallerKind.USER, user_id="alice")

    async def seconds(words: str) -> float:
        began = time.perf_counter()
        async with database.searching("alice") as db:
            assert not await crud.list_sessions(
                db, alice, crud.SessionFilter(search=words), limit=10
            )
        return time.perf_counter() - began

    for hit, miss in (("orchid é", "daisies é"), ("orchid", "daisies"), ("привет", "кошка")):
        pairs = [(await seconds(hit), await seconds(miss)) for _ in range(12)]
        with_hit, without = map(min, zip(*pairs, strict=True))
        # Searching all of it takes some hundred milliseconds.
        assert abs(with_hit - without) < 0.02 + min(with_hit, without), (hit, with_hit, without)


async def test_slow_search_is_cut_and_its_connection_serves_on(database: Database) -> None:
    endless = {
        True: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT max(i) FROM n",
        False: "SELECT pg_sleep(60)",
    }[database.is_sqlite]
    began = time.monotonic()

    with pytest.raises(SearchTooSlow):
        async with database.searching("caller") as db:
            await db.execute(text(endless))

    assert 1.5 < time.monotonic() - began < 50
    slow_but_allowed = {
        True: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000) "
        "SELECT max(i) FROM n",
        False: "SELECT count(*) FROM generate_series(1, 5000), pg_sleep(0.01)",
    }[database.is_sqlite]
    for _ in range(3):
        async with database.reading() as db:
            assert await db.scalar(text(slow_but_allowed)) == 5000


async def test_searches_leave_connections_to_everybody_else(
    settings: Settings, client: httpx2.AsyncClient, database: Database
) -> None:
    hold = asyncio.Event()
    running = 0

    async def search(caller: int) -> None:
        nonlocal running
        try:
            async with database.searching(caller):
                running += 1
                await hold.wait()
        except SearchBusy:
            pass

    async with anyio.create_task_group() as group:
        for caller in range(20):
            group.start_soon(search, caller)
        for _ in range(10):
            with anyio.fail_after(60):
                assert (await client.get("/agents")).status_code == 200
        assert 1 <= running <= max(1, settings.database_pool_size // 4, 4)
        hold.set()


async def test_connection_is_reserved_for_the_look_up_of_keys(database: Database) -> None:
    hold = asyncio.Event()
    reading = 0

    async def read() -> None:
        nonlocal reading
        async with database.reading() as db:
            await db.execute(text("SELECT 1"))
            reading += 1
            await hold.wait()

    async with anyio.create_task_group() as group:
        for _ in range(16):
            group.start_soon(read)
        while reading < (14 if database.is_sqlite else 4):
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(60):
            async with database.looking_up() as db:
                assert await db.scalar(text("SELECT 1")) == 1
        hold.set()


async def test_one_caller_takes_one_slot_of_searches() -> None:
    slots = CallerSlots(2, search_busy)
    order: list[str] = []

    async def search(caller: str, work: Callable[[], Awaitable[object]]) -> None:
        async with slots.slot(caller):
            order.append(caller)
            await work()

    done = asyncio.Event()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(search, "greedy", done.wait)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(search, "other", anyio.lowlevel.checkpoint)
        await anyio.wait_all_tasks_blocked()
        assert order == ["greedy", "other"]
        done.set()


@pytest.mark.parametrize("kind", ["short words", "hyphens", "addresses", "another script"])
async def test_answer_of_a_megabyte_of_different_words_is_stored(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, agent_id: str, kind: str
) -> None:
    makers: dict[str, Callable[[int], str]] = {
        "short words": lambda n: f"w{n:x}",
        "hyphens": lambda n: f"ab{n:x}-cd{n:x}-ef{n:x}",
        "addresses": lambda n: f"https://h{n:x}.example/p{n:x}?q={n}",
        "another script": lambda n: "".join(chr(0x10400 + int(digit)) for digit in f"{n:07}"),
    }
    make = makers[kind]
    words: list[str] = []
    size = 0
    while size < 1_100_000:
        words.append(make(len(words)))
        size += len(words[-1].encode()) + 1
    chat_model.answer = words[0] + "\n" + "\n".join(words[1:])
    limits = {"context_tokens": 1_000_000, "max_output_tokens": 300_000}
    assert (await client.patch(f"/agents/{agent_id}", json=limits)).status_code == 200
    session_id = await open_session(client, agent_id)

    reply = await client.post("/messages/text", json={"session_id": session_id, "content": "Go"})

    assert reply.status_code == 200, reply.text
    assert reply.json()["content"] == chat_model.answer
    assert await found(client, words[3]) == [session_id]

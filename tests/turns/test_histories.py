"""What is known of a conversation is not loaded again, and is what the database has."""

from uuid import UUID

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import DEFAULT_WORKSPACE_ID
from app.models import Message, MessageStatus, Modality, Role, Session, Turn
from app.services.ports import ProviderUnavailable
from app.services.turns.context.history_cache import (
    HistoryCache,
    SessionKey,
    immutable_prefix,
)
from app.services.turns.context.prompt import LOADED_MESSAGES
from app.services.turns.records import HistoryMessage
from app.state import Providers, State
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import open_server
from tests.turns.test_voice_turns import upload

pytestmark = pytest.mark.anyio

PLACE: SessionKey = (UUID(int=1), UUID(int=2))
ANSWERS = ("one", "two", "three", "four", "five")


async def say(client: httpx2.AsyncClient, session_id: str, content: str, key: str = "") -> int:
    body = {"session_id": session_id, "content": content}
    headers = {"Idempotency-Key": key} if key else {}
    return (await client.post("/messages/text", json=body, headers=headers)).status_code


async def talk(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel, *answers: str
) -> None:
    for answer in answers:
        chat_model.answer = answer
        assert await say(client, session_id, f"{answer}?") == 200


def lines(*answers: str) -> list[tuple[str, str]]:
    """What the model is shown of a talk."""
    said = [("system", "Be brief.")]
    for answer in answers:
        said += [("user", f"{answer}?"), ("assistant", answer)]
    return said


def known(state: State, session_id: str) -> list[str]:
    """What the engine knows of a session without asking, by its words."""
    place = DEFAULT_WORKSPACE_ID, UUID(session_id)
    return [message.content for message in state["turns"].cache.histories.get(place)]


async def rewrite(database: Database, session_id: str, seq: int, content: str) -> None:
    """Change a message behind the server's back."""
    async with database.transaction() as db:
        of_session = (Message.session_id == UUID(session_id), Message.seq == seq)
        await db.execute(update(Message).where(*of_session).values(content=content))


async def test_each_turn_is_shown_all_that_was_said(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    await talk(client, session_id, chat_model, *ANSWERS)

    for count, prompt in enumerate(chat_model.prompts):
        assert prompt == [*lines(*ANSWERS[:count]), ("user", f"{ANSWERS[count]}?")]


async def test_what_is_settled_for_good_is_not_loaded_again(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel, database: Database
) -> None:
    await talk(client, session_id, chat_model, "one", "two", "three")
    await rewrite(database, session_id, 1, "never asked for again")
    await rewrite(database, session_id, 6, "the newest, which is")

    await talk(client, session_id, chat_model, "four")

    before = lines("one", "two", "three")[:-1]
    last = [("assistant", "the newest, which is"), ("user", "four?")]
    assert chat_model.prompts[-1] == [*before, *last]


async def test_what_other_servers_answered_meanwhile_is_shown(
    settings: Settings,
    client: httpx2.AsyncClient,
    session_id: str,
    chat_model: FakeChatModel,
    database: Database,
    providers: Providers,
) -> None:
    await talk(client, session_id, chat_model, "one", "two")
    async with (
        open_server(settings, database, providers) as other,
        client_of(settings, other) as elsewhere,
    ):
        await talk(elsewhere, session_id, chat_model, "three", "four")

        await talk(client, session_id, chat_model, "five")

    assert chat_model.prompts[-1] == [*lines(*ANSWERS[:4]), ("user", "five?")]


async def test_answer_of_a_turn_that_was_run_again_later_is_shown(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    async def fail() -> None:
        raise ProviderUnavailable("away", retry_after_seconds=60)

    chat_model.while_thinking = fail
    assert await say(client, session_id, "Fails?", "k") == 503
    chat_model.while_thinking = None
    await talk(client, session_id, chat_model, "one", "two")
    assert ("user", "Fails?\n\none?") in chat_model.prompts[-1]
    chat_model.answer = "Not any more."
    assert await say(client, session_id, "Fails?", "k") == 200

    await talk(client, session_id, chat_model, "three")

    said = chat_model.prompts[-1]
    assert said[1:4] == [("user", "Fails?"), ("assistant", "Not any more."), ("user", "one?")]


async def test_what_was_heard_of_a_spoken_answer_may_be_told_much_later(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel, speech: bytes
) -> None:
    chat_model.answer = "The first sentence is here. Another one follows."
    turn_id = (await upload(client, session_id, speech)).headers["x-turn-id"]
    await talk(client, session_id, chat_model, "one", "two")
    await client.post(f"/turns/{turn_id}/cancel", json={"played_ms": 20 * 27})

    await talk(client, session_id, chat_model, "three")

    assert chat_model.prompts[-1][2] == ("assistant", "The first sentence is here.")


async def test_database_that_was_put_back_is_believed(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel, database: Database
) -> None:
    await talk(client, session_id, chat_model, *ANSWERS)
    async with database.transaction() as db:
        id_ = UUID(session_id)
        await db.execute(delete(Turn).where(Turn.session_id == id_, Turn.user_seq > 2))
        await db.execute(delete(Message).where(Message.session_id == id_, Message.seq > 2))
        await db.execute(update(Session).where(Session.id == id_).values(last_seq=2))

    await talk(client, session_id, chat_model, "six", "seven")

    assert chat_model.prompts[-2] == [*lines("one"), ("user", "six?")]
    assert chat_model.prompts[-1] == [*lines("one", "six"), ("user", "seven?")]


async def test_deleted_session_is_forgotten(
    state: State, client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    await talk(client, session_id, chat_model, "one", "two", "three")
    before = known(state, session_id)

    await client.delete(f"/sessions/{session_id}")

    assert before == ["one?", "one", "two?"]
    assert known(state, session_id) == []
    assert await say(client, session_id, "Still there?") == 404


def message(seq: int, words: str = "word") -> HistoryMessage:
    role = Role.USER if seq % 2 else Role.ASSISTANT
    return HistoryMessage(seq, role.value, MessageStatus.COMPLETED.value, words)


def next_turn(histories: HistoryCache, newer: list[HistoryMessage]) -> None:
    """Do what a turn does that finds `newer` after what is known."""
    histories.put(PLACE, immutable_prefix(histories.get(PLACE), newer))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_what_is_known_ends_before_the_newest_and_has_no_gap(steps: list[int]) -> None:
    histories = HistoryCache()
    last = 0
    for step in steps:
        known = histories.get(PLACE)
        after = known[-1].seq if known else 0
        last += step

        next_turn(histories, [message(seq) for seq in range(after + 1, last + 1)])

        numbers = [each.seq for each in histories.get(PLACE)]
        assert numbers == list(range(max(1, last - LOADED_MESSAGES), last))


@pytest.mark.parametrize(
    "changing",
    [
        HistoryMessage(2, "assistant", "failed", "broken off"),
        HistoryMessage(2, "assistant", "in_progress", ""),
        HistoryMessage(2, "assistant", "completed", "spoken", Modality.VOICE.value),
        HistoryMessage(2, "user", "completed", "heard", Modality.VOICE.value),
    ],
)
def test_nothing_is_kept_from_the_first_that_may_change(changing: HistoryMessage) -> None:
    histories = HistoryCache()

    next_turn(histories, [message(1), changing, message(3), message(4)])

    assert [each.seq for each in histories.get(PLACE)] == [1]


def test_what_is_kept_has_a_bound_and_the_last_used_stays() -> None:
    histories = HistoryCache()
    long = (message(1, "x" * 1_000_000),)
    for number in range(20):
        histories.put((UUID(int=1), UUID(int=number)), long)
        histories.put((UUID(int=1), UUID(int=0)), long)

    kept = [number for number in range(20) if histories.get((UUID(int=1), UUID(int=number)))]

    assert kept == [0, *range(13, 20)]

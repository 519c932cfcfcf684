"""What a turn leaves behind: on success, on failure, when cancelled, and in which order."""

from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import select

from app.core.database import Database
from app.core.security import ADMIN
from app.models import Message, MessageStatus, Turn, TurnStatus
from app.services.crud import SessionNotFound
from app.services.ports import FinishReason, ProviderRejected, ProviderUnavailable
from app.services.turns.errors import SessionQueueFull, TurnCancellation
from app.state import State
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, reply_to_text, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def stored(database: Database, session_id: str) -> list[tuple[int, str, str, str]]:
    async with database.reading() as db:
        rows = await db.execute(
            select(Message.seq, Message.role, Message.status, Message.content)
            .where(Message.session_id == UUID(session_id))
            .order_by(Message.seq)
        )
        return [(seq, role.value, status.value, content) for seq, role, status, content in rows]


async def statuses(database: Database) -> list[TurnStatus]:
    async with database.reading() as db:
        return list((await db.scalars(select(Turn.status).order_by(Turn.user_seq))).all())


async def test_turn_stores_question_answer_usage_and_timings(
    client: httpx2.AsyncClient, database: Database, session_id: str
) -> None:
    reply = (
        await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
    ).json()

    assert reply["seq"] == 2
    assert reply["status"] == "completed"
    assert reply["usage"] == {
        "prompt_tokens": 7,
        "cached_tokens": 2,
        "completion_tokens": 3,
        "cost_usd": 0,  # the embedded engine's
        "estimated": False,
    }
    assert 0 <= reply["timings"]["first_token_ms"] <= reply["timings"]["total_ms"]
    assert await stored(database, session_id) == [
        (1, "user", "completed", "Hi"),
        (2, "assistant", "completed", "Hello there!"),
    ]
    turn = (await client.get(f"/turns/{reply['turn_id']}")).json()
    assert turn["status"] == "completed"
    assert turn["model"] == "fake-1"
    assert turn["finish_reason"] == "stop"
    spoken = {"speech_in_seconds": None, "speech_out_characters": None}
    assert turn["usage"] == reply["usage"] | spoken
    assert turn["message"]["content"] == "Hello there!"
    assert turn["started_at"].endswith("Z")


async def test_prompt_is_the_system_prompt_and_the_settled_messages_before_it(
    state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    for content in ("1", "2"):
        await reply_to_text(state["turns"], ADMIN, UUID(session_id), content)

    assert chat_model.prompts[-1] == [
        ("system", "Be brief."),
        ("user", "1"),
        ("assistant", "Hello there!"),
        ("user", "2"),
    ]


async def test_answer_cut_by_its_limit_is_marked_truncated(
    state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    chat_model.finish_reason = FinishReason.LENGTH

    reply = await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")

    assert reply.status is MessageStatus.TRUNCATED


async def test_no_connection_is_held_while_the_model_thinks(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    counted: list[int] = []

    async def count() -> None:
        # Upkeep has one now and then, for a moment.
        await until(lambda: not database.checked_out())
        counted.append(database.checked_out())

    chat_model.while_thinking = count
    await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")

    assert counted == [0]


async def test_failed_turn_keeps_the_question_and_says_why(
    client: httpx2.AsyncClient, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("The provider refused.")

    chat_model.while_thinking = refuse
    response = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    assert response.status_code == 502
    problem = response.json()
    assert problem["code"] == "provider-rejected"
    assert await stored(database, session_id) == [
        (1, "user", "completed", "Hi"),
        (2, "assistant", "failed", ""),
    ]
    turn = (await client.get(f"/turns/{problem['turn_id']}")).json()
    assert turn["status"] == "failed"
    assert turn["error"] == {"code": "provider-rejected", "detail": "The provider refused."}


async def test_unanswered_question_stays_in_the_next_prompt_and_the_broken_answer_does_not(
    state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("The provider refused.")

    chat_model.while_thinking = refuse
    with pytest.raises(ProviderRejected):
        await reply_to_text(state["turns"], ADMIN, UUID(session_id), "1")
    chat_model.while_thinking = None
    await reply_to_text(state["turns"], ADMIN, UUID(session_id), "2")

    assert chat_model.prompts[-1] == [("system", "Be brief."), ("user", "1\n\n2")]


async def test_transient_failure_of_the_provider_is_not_seen(
    state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    async def fail_once() -> None:
        if len(chat_model.requests) == 1:
            raise ProviderUnavailable("Not now.", retry_after_seconds=0.01)

    chat_model.while_thinking = fail_once

    reply = await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")

    assert reply.content == "Hello there!"
    assert len(chat_model.requests) == 2


async def test_bug_in_a_provider_ends_the_turn_as_an_internal_error(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, database: Database, session_id: str
) -> None:
    async def break_down() -> None:
        raise ZeroDivisionError

    chat_model.while_thinking = break_down
    response = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    assert response.status_code == 500
    assert response.json()["code"] == "internal-error"
    assert "ZeroDivision" not in response.text
    assert await statuses(database) == [TurnStatus.FAILED]


async def test_turn_goes_on_when_the_caller_leaves(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    async with anyio.create_task_group() as group:
        group.start_soon(reply_to_text, state["turns"], ADMIN, UUID(session_id), "Hi")
        await gate.arrived.wait()
        group.cancel_scope.cancel()
    gate.opened.set()
    await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Still there?")

    assert await statuses(database) == [TurnStatus.COMPLETED, TurnStatus.COMPLETED]


async def test_turn_whose_caller_leaves_while_it_is_accepted_is_stored_and_run(
    state: State, database: Database, session_id: str
) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(state["turns"].start, ADMIN, UUID(session_id), "Hi")
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Still there?")

    assert scope.cancelled_caught
    await wait_until_settled(database)  # whichever of the two was accepted last
    assert await statuses(database) == [TurnStatus.COMPLETED, TurnStatus.COMPLETED]


async def test_turns_of_one_session_run_one_at_a_time_in_the_order_of_their_numbers(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    running = 0

    async def count() -> None:
        nonlocal running
        running += 1
        assert running == 1
        await anyio.lowlevel.checkpoint()
        running -= 1

    chat_model.while_thinking = count
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(
                reply_to_text, state["turns"], ADMIN, UUID(session_id), f"question {number}"
            )

    messages = await stored(database, session_id)
    assert [seq for seq, *_ in messages] == list(range(1, 17))
    assert [role for _, role, *_ in messages] == ["user", "assistant"] * 8
    for position, prompt in enumerate(chat_model.prompts):
        before = [(role, content) for _, role, _, content in messages[: 2 * position + 1]]
        assert prompt[1:] == before


async def test_ninth_waiting_turn_is_refused(
    state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turns = [await state["turns"].start(ADMIN, UUID(session_id), "Hi") for _ in range(9)]

    with pytest.raises(SessionQueueFull):
        await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    gate.opened.set()
    for turn in turns:
        await state["turns"].result(turn)

    assert len(chat_model.requests) == 9


async def test_cancelled_turn_keeps_what_was_said_and_lets_the_next_one_run(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    first = await state["turns"].start(ADMIN, UUID(session_id), "1")
    second = await state["turns"].start(ADMIN, UUID(session_id), "2")
    await gate.arrived.wait()

    await state["turns"].cancel(ADMIN, first.record.id)
    gate.opened.set()

    with pytest.raises(TurnCancellation):
        await state["turns"].result(first)
    assert (await state["turns"].result(second)).content == "Hello there!"
    assert await statuses(database) == [TurnStatus.CANCELLED, TurnStatus.COMPLETED]


async def test_cancelling_a_queued_turn_leaves_the_live_one_alone(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    first = await state["turns"].start(ADMIN, UUID(session_id), "1")
    second = await state["turns"].start(ADMIN, UUID(session_id), "2")
    third = await state["turns"].start(ADMIN, UUID(session_id), "3")
    await gate.arrived.wait()

    await state["turns"].cancel(ADMIN, second.record.id)
    gate.opened.set()
    await state["turns"].result(first)
    await state["turns"].result(third)

    assert await statuses(database) == [
        TurnStatus.COMPLETED,
        TurnStatus.CANCELLED,
        TurnStatus.COMPLETED,
    ]


async def test_session_deleted_during_its_turn_stays_deleted(
    client: httpx2.AsyncClient, state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()

    deleted = await client.delete(f"/sessions/{session_id}")
    gate.opened.set()
    await turn.settled.wait()

    assert deleted.status_code == 204
    assert (await client.get(f"/sessions/{session_id}")).status_code == 404
    with pytest.raises(SessionNotFound):
        await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")


async def test_nul_and_lone_surrogates_of_a_model_are_replaced(
    state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    chat_model.answer = "a\x00b \ud800c"

    reply = await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")

    assert reply.content == "a\ufffdb \ufffdc"


async def test_empty_answer_is_not_stored_as_an_answer(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, session_id: str
) -> None:
    chat_model.answer = ""

    response = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    assert response.status_code == 502
    assert response.json()["code"] == "upstream-incomplete"

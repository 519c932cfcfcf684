"""A spoken answer is heard on any server while it is spoken on one."""

from collections.abc import AsyncIterator

import anyio
import httpx2
import pytest

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.services.turns.errors import TurnInterrupted
from app.services.voice import VoiceAnswer
from app.state import State
from tests.conftest import StartServer
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel, FakeSpeaker
from tests.support.turns import Gate, abandon
from tests.support.waiting import until
from tests.turns.test_voice_turns import ANSWER, turns_of, upload

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.postgres,
    pytest.mark.parametrize("settings", ["postgres"], indirect=True),  # SQLite has one server
]


@pytest.fixture
async def other(second_server: StartServer, state: State) -> AsyncIterator[State]:
    """A second server on the same database."""
    assert not state["turns"].is_draining  # the first is there already
    async with second_server() as other:
        yield other


@pytest.fixture
def gate(chat_model: FakeChatModel, speaker: FakeSpeaker) -> Gate:
    """Holds every sentence but the first back."""
    chat_model.answer = ANSWER
    gate = Gate()

    async def hold_the_others() -> None:
        if len(speaker.said) > 1:
            await gate()

    speaker.while_speaking = hold_the_others
    return gate


async def begun_on(state: State, session_id: str, there: State) -> VoiceAnswer:
    """Listen on `there` to what the session's turn on `state` has said so far."""
    (turn_id,) = await turns_of(state, session_id)
    answer = await there["voice"].find_answer(ADMIN, turn_id)
    with anyio.fail_after(60):
        await answer.first_sound()
    return answer


async def rest_of(answer: VoiceAnswer) -> bytes:
    with anyio.fail_after(60):
        return b"".join([chunk async for chunk in answer.mp3()])


async def test_answer_is_heard_on_another_server_before_it_is_whole(
    client: httpx2.AsyncClient,
    state: State,
    other: State,
    gate: Gate,
    session_id: str,
    speech: bytes,
) -> None:
    sent: list[httpx2.Response] = []
    heard: list[VoiceAnswer] = []
    rest: list[bytes] = []

    async def send() -> None:
        sent.append(await upload(client, session_id, speech))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await gate.arrived.wait()
        heard.append(await begun_on(state, session_id, other))
        assert sent == []
        gate.opened.set()
        rest.append(await rest_of(heard[0]))

    (mp3,) = rest
    assert mp3 == sent[0].content
    assert heard[0].whole is None
    assert heard[0].transcript.text == "What time is it?"
    again = await client.get(f"/turns/{heard[0].turn_id}/audio")
    assert again.content == mp3


async def test_answer_that_is_cancelled_ends_elsewhere_where_it_ended(
    client: httpx2.AsyncClient,
    state: State,
    other: State,
    gate: Gate,
    session_id: str,
    speech: bytes,
) -> None:
    async def listen() -> None:
        await gate.arrived.wait()
        answer = await begun_on(state, session_id, other)
        await client.post(f"/turns/{answer.turn_id}/cancel")
        heard.append(await rest_of(answer))

    heard: list[bytes] = []
    async with anyio.create_task_group() as group:
        group.start_soon(upload, client, session_id, speech)
        group.start_soon(listen)

    (turn_id,) = await turns_of(state, session_id)
    stored = await client.get(f"/turns/{turn_id}/audio")
    assert stored.content == heard[0] != b""


async def test_what_was_heard_elsewhere_is_what_the_waiting_message_is_told(
    settings: Settings,
    client: httpx2.AsyncClient,
    state: State,
    other: State,
    gate: Gate,
    chat_model: FakeChatModel,
    speaker: FakeSpeaker,
    session_id: str,
    speech: bytes,
) -> None:
    async def go_on() -> None:
        await client.post("/messages/text", json={"session_id": session_id, "content": "Go on."})

    cut: list[httpx2.Response] = []
    async with client_of(settings, other) as there, anyio.create_task_group() as group:
        group.start_soon(upload, client, session_id, speech)
        await gate.arrived.wait()
        answer = await begun_on(state, session_id, other)
        group.start_soon(go_on)

        async def second_is_accepted() -> bool:
            return len(await turns_of(state, session_id)) == 2

        await until(second_is_accepted)
        speaker.while_speaking = None
        cut.append(await there.post(f"/turns/{answer.turn_id}/cancel", json={"played_ms": 300}))
        await rest_of(answer)

    assert cut[0].json()["message"]["heard_content"] == "The first"
    assert chat_model.prompts[-1][-2:] == [("assistant", "The first"), ("user", "Go on.")]


async def test_listener_elsewhere_is_cut_off_where_the_answer_is_spoken_anew(
    client: httpx2.AsyncClient,
    state: State,
    other: State,
    gate: Gate,
    speaker: FakeSpeaker,
    database: Database,
    session_id: str,
    speech: bytes,
) -> None:
    async def listen() -> None:
        await gate.arrived.wait()
        answer = await begun_on(state, session_id, other)
        speaker.while_speaking = None
        await abandon(database, answer.turn_id)
        with pytest.raises(TurnInterrupted):
            await rest_of(answer)
        gate.opened.set()

    async with anyio.create_task_group() as group:
        group.start_soon(upload, client, session_id, speech)
        group.start_soon(listen)

    (turn_id,) = await turns_of(state, session_id)
    with anyio.fail_after(60):
        again = await other["voice"].find_answer(ADMIN, turn_id)
        await again.first_sound()
    stored = await client.get(f"/turns/{turn_id}/audio")
    assert await rest_of(again) == stored.content

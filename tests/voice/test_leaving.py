"""A client that leaves while it listens."""

from uuid import UUID

import anyio
import pytest
from starlette.types import Message

from app.core.security import ADMIN
from app.http.audio_response import audio_response
from app.models import TurnStatus
from app.services.turns import TurnOptions
from app.state import State
from tests.support.fake_providers import FakeChatModel, FakeSpeaker
from tests.support.turns import Gate

pytestmark = pytest.mark.anyio

ANSWER = "The first sentence is here. Another one follows it. And this is the third."


@pytest.mark.parametrize("wants_cancel", [True, False])
async def test_turn_is_cancelled_where_the_client_wants_that(
    state: State,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
    speaker: FakeSpeaker,
    wants_cancel: bool,
) -> None:
    chat_model.answer = ANSWER
    gate = Gate()

    async def hold_the_second() -> None:
        if len(speaker.said) > 1:
            await gate()

    speaker.while_speaking = hold_the_second
    answer = await state["voice"].reply_to_recording(ADMIN, UUID(session_id), speech, TurnOptions())
    await answer.first_sound()
    has_heard = anyio.Event()

    async def left() -> None:
        await state["turns"].cancel(ADMIN, answer.turn_id)

    async def receive() -> Message:
        await has_heard.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            has_heard.set()

    response = audio_response(answer, on_disconnect=left if wants_cancel else None)
    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    with anyio.fail_after(60):
        await response(scope, receive, send)
        gate.opened.set()
        await answer.turn.settled.wait()

    outcome = answer.turn.outcome
    assert outcome
    assert outcome.status is (TurnStatus.CANCELLED if wants_cancel else TurnStatus.COMPLETED)

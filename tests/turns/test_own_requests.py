"""What one turn asks for beside its message: stored with it, and the same in every attempt."""

from collections.abc import AsyncGenerator
from uuid import UUID, uuid4

import anyio
import pytest

from app.core.database import Database
from app.core.security import ADMIN
from app.models import Turn
from app.services.ports import (
    ChatFinished,
    ChatItem,
    ChatOptions,
    ChatRequest,
    FinishReason,
    ToolCallDelta,
    ToolDefinition,
)
from app.services.prompt_lines import PromptAnswer, PromptResult
from app.services.turns import TurnOptions, TurnRequest
from app.services.turns.errors import ToolsNotTaken
from app.services.turns.parts import TextPart, ToolCallPart, ToolResultPart
from app.services.turns.records import Persona, persona_of_request
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel, FakeSpeaker
from tests.support.turns import Gate, abandon, wait_until_settled

pytestmark = pytest.mark.anyio

WEATHER = ToolDefinition("weather", "Tells the weather.", {"type": "object"}, is_strict=True)
OWN = TurnRequest(
    tools=(WEATHER,),
    may_call_tools=False,
    options=ChatOptions(tool_choice="required"),
    system_prompt="Rhyme.",
    temperature=0.5,
    max_output_tokens=40,
    voice="cedar",
)


class CallingModel(FakeChatModel):
    """Calls the tools `weather` and `time` at once."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        yield ToolCallDelta(0, "theirs", "weather", "{}")
        yield ToolCallDelta(1, "others", "weather", '{"city": "Bern"}')
        yield ChatFinished(FinishReason.TOOL_CALLS, "fake-1", 7, 0, 3)


def test_stored_request_is_the_same() -> None:
    assert TurnRequest.from_json(OWN.to_json()) == OWN
    assert TurnRequest.from_json(TurnRequest().to_json()) == TurnRequest()
    assert OWN.is_own
    assert not TurnRequest().is_own


def test_request_changes_the_agents_settings_and_only_lowers_its_limit() -> None:
    agent = Persona(1, "Be brief.", "m", 0.1, 30, None, "nova", "en")

    own = persona_of_request(agent, OWN)

    assert own.system_prompt == "Be brief.\n\nRhyme."
    assert (own.temperature, own.max_output_tokens, own.voice) == (0.5, 30, "cedar")
    assert persona_of_request(agent, TurnRequest()) == agent


async def test_turn_that_is_taken_over_asks_for_the_same(
    state: State, database: Database, session_id: str, chat_model: FakeChatModel,
    speaker: FakeSpeaker, second_server: StartServer,
) -> None:  # fmt: skip
    gate = Gate()
    chat_model.while_thinking = gate
    other_model = FakeChatModel()
    voice = state["voice"]._voices.make(None, has_clips=False)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    live = await state["turns"].start(
        ADMIN, UUID(session_id), "Hi.", voice, TurnOptions(request=OWN)
    )
    await gate.arrived.wait()
    await abandon(database, live.record.id)
    async with second_server(chat_model=other_model):
        await wait_until_settled(database)
    gate.opened.set()

    for request in (chat_model.requests[0], other_model.requests[0]):
        assert request.messages[0].content == "Be brief.\n\nRhyme."
        assert request.tools == (WEATHER,)
        assert not request.may_call_tools
        assert request.options == ChatOptions(tool_choice="required")
        assert (request.temperature, request.max_output_tokens) == (0.5, 40)
    assert speaker.said[-1][1] == "cedar"
    async with database.reading() as db:
        turn = await db.get_one(Turn, (live.record.workspace_id, live.record.id))
    assert turn.attempt == 2


async def test_user_message_has_the_id_that_its_sender_was_told(
    state: State, session_id: str
) -> None:
    message_id = uuid4()
    live = await state["turns"].start(
        ADMIN, UUID(session_id), "Hi.", None, TurnOptions(user_message_id=message_id)
    )
    await state["turns"].result(live)

    assert live.record.user_message_id == message_id


@pytest.mark.parametrize("chat_model", [CallingModel()])
async def test_results_of_calls_stand_behind_them_and_a_missing_one_is_named(
    state: State, session_id: str, chat_model: FakeChatModel
) -> None:
    turns = state["turns"]
    asking = TurnOptions(request=TurnRequest(tools=(WEATHER,)))
    first = await turns.start(ADMIN, UUID(session_id), "Weather?", None, asking)
    await turns.result(first)
    assert first.outcome is not None
    calls = [part for part in first.outcome.parts or () if isinstance(part, ToolCallPart)]
    results = (TextPart("And?"), ToolResultPart(calls[1].call_id, "Sunny."))
    second = await turns.start(
        ADMIN, UUID(session_id), "And?", None,
        TurnOptions(request=TurnRequest(tools=(WEATHER,)), parts=results),
    )  # fmt: skip
    await turns.result(second)

    _, question, made, *answers, last = chat_model.requests[-1].messages
    assert question.content == "Weather?"
    assert isinstance(made, PromptAnswer)
    assert [call.id for call in made.calls] == [call.call_id for call in calls]
    assert all(isinstance(answer, PromptResult) for answer in answers)
    assert [answer.content for answer in answers] == [
        "The client did not answer this call.",
        "Sunny.",
    ]
    assert last.content == "And?"


async def test_agent_with_tools_takes_none_of_the_callers(
    state: State, client: object, session_id: str, database: Database
) -> None:
    del client
    async with database.transaction() as db:
        from sqlalchemy import update

        from app.models import AgentVersion

        pins = [{"tool_id": str(uuid4()), "version": 1, "approval": "never"}]
        await db.execute(update(AgentVersion).values(tools=pins))

    with pytest.raises(ToolsNotTaken):
        await state["turns"].start(
            ADMIN, UUID(session_id), "Hi.", None, TurnOptions(request=TurnRequest(tools=(WEATHER,)))
        )

"""Unstored turns: a receipt and nothing else, never run again, known to all that walks turns."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase

from app.core.database import Database
from app.core.security import ADMIN, Caller, CallerKind
from app.models import Message, Session, ToolCall, Turn, TurnEventBatch, TurnStatus, TurnStep
from app.services.crud import AgentArchived, AgentNotFound, TurnNotFound
from app.services.ports import (
    ChatFinished,
    ChatItem,
    ChatOptions,
    ChatRequest,
    FinishReason,
    ProviderRejected,
    ProviderUnavailable,
    ToolCallDelta,
    ToolDefinition,
    UpstreamIncomplete,
)
from app.services.prompt_lines import PromptContent, PromptImage, PromptMessage
from app.services.turns import LiveTurn, RequestKey, TurnEngine, TurnOptions
from app.services.turns.errors import (
    AnswerNotKept,
    MessageTooLong,
    TurnCancellation,
    TurnInterrupted,
)
from app.services.turns.parts import TextPart, ToolCallPart
from app.services.turns.records import TurnRequest
from app.services.usage.errors import BudgetExhausted
from app.state import State
from tests.conftest import StartServer
from tests.files import made
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, abandon, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

WEATHER = ToolDefinition("weather", "Tells the weather.", {"type": "object"})


class CallingModel(FakeChatModel):
    """Calls the tool `name`."""

    name = "weather"

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        yield ToolCallDelta(0, "theirs", self.name, '{"city":')
        yield ToolCallDelta(0, "theirs", self.name, '"Bern"}')
        yield ChatFinished(FinishReason.TOOL_CALLS, "fake-1", 7, 0, 3)


def asking(agent_id: str, *words: str, key: str | None = None, **request: object) -> TurnOptions:
    prompt = tuple(PromptMessage("user", each) for each in words)
    fields: dict[str, object] = {"prompt": prompt, **request}
    return TurnOptions(
        keeps_content=False,
        agent=UUID(agent_id),
        request=replace(TurnRequest(), **fields),  # pyright: ignore[reportArgumentType]
        key=RequestKey(key, b"f" * 32) if key else None,
    )


async def start(engine: TurnEngine, options: TurnOptions, caller: Caller = ADMIN) -> LiveTurn:
    return await engine.start(caller, UUID(int=0), "", None, options)


async def counts(database: Database, *tables: type[DeclarativeBase]) -> list[int | None]:
    async with database.reading() as db:
        return [await db.scalar(select(func.count()).select_from(table)) for table in tables]


async def only_turn(database: Database) -> Turn:
    async with database.reading() as db:
        return (await db.scalars(select(Turn))).one()


async def test_unstored_turn_leaves_a_receipt_and_nothing_else(
    state: State, database: Database, chat_model: FakeChatModel, agent_id: str
) -> None:
    options = asking(agent_id, "One", "Two", system_prompt="Be kind.", temperature=0.1)

    live = await start(state["turns"], options)
    reply = await state["turns"].result(live)

    assert reply.content == "Hello there!"
    assert chat_model.prompts == [
        [("system", "Be brief.\n\nBe kind."), ("user", "One"), ("user", "Two")]
    ]
    assert chat_model.requests[0].temperature == 0.1
    turn = await only_turn(database)
    assert (turn.session_id, turn.status, turn.request) == (None, TurnStatus.COMPLETED, None)
    assert (turn.prompt_tokens, turn.completion_tokens, turn.finish_reason) == (7, 3, "stop")
    assert await counts(database, Message, Session, TurnEventBatch) == [0, 0, 0]


async def test_unstored_turn_is_listed_and_counted_but_never_found(
    client: httpx2.AsyncClient, state: State, agent_id: str
) -> None:
    live = await start(state["turns"], asking(agent_id, "Hi"))
    await state["turns"].wait(live)

    (listed,) = (await client.get("/turns")).json()
    (usage,) = (await client.get("/usage")).json()
    gets = [
        await client.get(f"/turns/{live.record.id}{path}") for path in ("", "/events", "/audio")
    ]

    assert (listed["id"], listed["session_id"]) == (str(live.record.id), None)
    assert listed["usage"]["prompt_tokens"] == usage["prompt_tokens"] == 7
    assert [each.status_code for each in gets] == [404, 404, 404]


async def test_events_of_a_running_unstored_turn_are_not_found_by_its_id(
    client: httpx2.AsyncClient, state: State, chat_model: FakeChatModel, agent_id: str
) -> None:
    chat_model.while_thinking = gate = Gate()
    live = await start(state["turns"], asking(agent_id, "Hi"))
    await gate.arrived.wait()

    got = await client.get(f"/turns/{live.record.id}/events")
    with pytest.raises(TurnNotFound):
        await state["turns"].find(ADMIN, live.record.id)
    gate.opened.set()
    await state["turns"].wait(live)

    assert got.status_code == 404


async def test_unstored_turn_is_cancelled_by_the_server_that_runs_it_or_another(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    agent_id: str,
) -> None:
    chat_model.while_thinking = Gate()
    here, there = [await start(state["turns"], asking(agent_id, "Hi")) for _ in range(2)]

    await state["turns"].cancel(ADMIN, here.record.id)
    if not database.is_sqlite:
        async with second_server() as other:
            await other["turns"].cancel(ADMIN, there.record.id)
    await state["turns"].cancel(ADMIN, there.record.id)

    for live in (here, there):
        with pytest.raises(TurnCancellation):
            live.reply()
    async with database.reading() as db:
        assert set(await db.scalars(select(Turn.status))) == {TurnStatus.CANCELLED}


async def test_user_does_not_cancel_a_turn_by_its_id(
    state: State, chat_model: FakeChatModel, agent_id: str
) -> None:
    chat_model.while_thinking = gate = Gate()
    live = await start(state["turns"], asking(agent_id, "Hi"))
    user = replace(ADMIN, kind=CallerKind.USER, user_id="anna")

    with pytest.raises(TurnNotFound):
        await state["turns"].cancel(user, live.record.id)
    gate.opened.set()

    assert (await state["turns"].result(live)).content == "Hello there!"


async def test_turn_of_a_dead_server_fails_and_is_not_run_again(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    agent_id: str,
) -> None:
    chat_model.while_thinking = gate = Gate()
    live = await start(state["turns"], asking(agent_id, "Hi"))
    await gate.arrived.wait()
    await abandon(database, live.record.id)
    answering = FakeChatModel()

    async with second_server(chat_model=answering):
        await wait_until_settled(database)
    gate.opened.set()
    with anyio.fail_after(60):
        await live.settled.wait()

    turn = await only_turn(database)
    assert (turn.status, turn.error_code) == (TurnStatus.FAILED, "turn-interrupted")
    assert answering.requests == []


async def test_shutdown_ends_unstored_turns_as_interrupted(
    database: Database, chat_model: FakeChatModel, agent_id: str
) -> None:
    chat_model.while_thinking = gate = Gate()
    engine = TurnEngine(database, chat_model, drain_seconds=0)

    async with engine.running():
        live = await start(engine, asking(agent_id, "Hi"))
        await gate.arrived.wait()

    with pytest.raises(TurnInterrupted):
        live.reply()
    turn = await only_turn(database)
    assert (turn.status, turn.error_code, turn.owner_id) == (
        TurnStatus.FAILED,
        "turn-interrupted",
        None,
    )
    assert turn.prompt_tokens


async def test_key_attaches_while_the_turn_runs_and_is_refused_once_it_is_answered(
    state: State, database: Database, chat_model: FakeChatModel, agent_id: str
) -> None:
    chat_model.while_thinking = gate = Gate()
    options = asking(agent_id, "Hi", key="k")
    first = await start(state["turns"], options)
    await gate.arrived.wait()

    second = await start(state["turns"], options)
    gate.opened.set()
    await state["turns"].wait(first)
    with pytest.raises(AnswerNotKept):
        await start(state["turns"], options)

    assert second is first
    assert second.is_replayed
    assert await counts(database, Turn) == [1]


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_key_of_a_turn_without_an_answer_begins_anew(
    state: State, database: Database, chat_model: FakeChatModel, agent_id: str, ending: str
) -> None:
    options = asking(agent_id, "Hi", key="k")

    async def fail() -> None:
        raise ProviderUnavailable("It is away.")

    gate = Gate()
    chat_model.while_thinking = fail if ending == "failed" else gate
    first = await start(state["turns"], options)
    if ending == "cancelled":
        first.scope.cancel()
    await state["turns"].wait(first)
    chat_model.while_thinking = None

    second = await start(state["turns"], options)

    assert (await state["turns"].result(second)).content == "Hello there!"
    assert await counts(database, Turn) == [2]


async def test_key_of_a_refused_turn_has_its_error(
    state: State, chat_model: FakeChatModel, agent_id: str
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("It said no.")

    chat_model.while_thinking = refuse
    options = asking(agent_id, "Hi", key="k")
    await state["turns"].wait(await start(state["turns"], options))

    with pytest.raises(ProviderRejected):
        await start(state["turns"], options)


async def test_prompt_that_does_not_fit_is_refused_and_nothing_of_it_left_out(
    state: State, database: Database, agent_id: str
) -> None:
    words = ["word " * 4000] * 10

    with pytest.raises(MessageTooLong):
        await start(state["turns"], asking(agent_id, *words))

    assert await counts(database, Turn) == [0]


async def test_agent_that_is_unknown_or_archived_answers_nothing(
    client: httpx2.AsyncClient, state: State, agent_id: str
) -> None:
    with pytest.raises(AgentNotFound):
        await start(state["turns"], asking(str(UUID(int=7)), "Hi"))
    await client.delete(f"/agents/{agent_id}")
    with pytest.raises(AgentArchived):
        await start(state["turns"], asking(agent_id, "Hi"))


async def test_call_of_a_callers_tool_ends_the_turn_with_an_id_of_ours(
    database: Database, agent_id: str
) -> None:
    calling = CallingModel()
    engine = TurnEngine(database, calling)
    async with engine.running():
        options = ChatOptions(tool_choice="required")
        asked = asking(agent_id, "Weather?", tools=(WEATHER,), options=options)
        live = await start(engine, asked)
        await engine.wait(live)

    assert live.outcome
    assert live.outcome.status is TurnStatus.COMPLETED
    (part,) = list(live.outcome.parts or ())
    assert isinstance(part, ToolCallPart)
    assert (part.name, part.arguments) == ("weather", '{"city":"Bern"}')
    assert part.call_id.startswith("call_")
    assert calling.requests[0].tools == (WEATHER,)
    assert calling.requests[0].options == options
    assert await counts(database, ToolCall, TurnStep, Message) == [0, 0, 0]


async def test_call_of_a_tool_that_was_not_given_fails_the_turn(
    database: Database, agent_id: str
) -> None:
    calling = CallingModel()
    calling.name = "launch"
    engine = TurnEngine(database, calling)
    async with engine.running():
        live = await start(engine, asking(agent_id, "Weather?", tools=(WEATHER,)))
        await engine.wait(live)

    with pytest.raises(UpstreamIncomplete):
        live.reply()


async def test_budget_of_the_key_pays_and_is_given_back(
    client: httpx2.AsyncClient, state: State, database: Database, agent_id: str
) -> None:
    body = {"name": "small", "scopes": ["turns:write"]}
    created = (await client.post("/keys", json=body)).json()
    caller = Caller(
        ADMIN.workspace_id, CallerKind.KEY, key_id=created["id"], limits=replace(ADMIN.limits)
    )
    caller = replace(caller, limits=replace(caller.limits, tokens_per_day=5_000))

    live = await start(state["turns"], asking(agent_id, "Hi"), caller)
    await state["turns"].wait(live)
    turn = await only_turn(database)
    with pytest.raises(BudgetExhausted):
        await start(state["turns"], asking(agent_id, "Hi " * 2000), caller)

    assert turn.key_id == created["id"]
    (sums,) = (await client.get("/usage", params={"key_id": created["id"]})).json()
    assert sums["prompt_tokens"] == 7


async def test_budget_reserves_images(state: State, agent_id: str) -> None:
    limits = replace(ADMIN.limits, tokens_per_day=50_000)
    user = replace(ADMIN, kind=CallerKind.USER, user_id="anna", limits=limits)
    image = PromptImage("image/png", made.png())
    reserved: list[int] = []
    for pieces in ((), (image, image)):
        line = PromptContent("user", "Look", ("Look", *pieces))
        live = await start(state["turns"], asking(agent_id, prompt=(line,)), user)
        assert live.record.reservation
        reserved.append(live.record.reservation.tokens)
        await state["turns"].wait(live)

    assert reserved[1] - reserved[0] == 2 * 1100


async def test_deleting_a_user_cancels_their_unstored_turns_and_keeps_the_usage(
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    agent_id: str,
) -> None:
    chat_model.while_thinking = gate = Gate()
    user = replace(ADMIN, kind=CallerKind.USER, user_id="anna")
    live = await start(state["turns"], asking(agent_id, "Hi"), user)
    await gate.arrived.wait()

    deleted = (await client.delete("/users/anna")).json()

    assert live.settled.is_set()
    assert deleted["usage_records"] == 1
    turn = await only_turn(database)
    assert turn.user_id == deleted["kept_as"]
    assert turn.status is TurnStatus.CANCELLED


async def test_text_of_an_unstored_answer_is_in_no_table(
    state: State, database: Database, chat_model: FakeChatModel, agent_id: str
) -> None:
    chat_model.answer = "zebra " * 1000
    chat_model.while_thinking = gate = Gate()
    live = await start(state["turns"], asking(agent_id, "giraffe"))
    await gate.arrived.wait()
    gate.opened.set()
    await until(live.settled.is_set)

    assert live.outcome
    assert live.outcome.parts in (None, [TextPart(chat_model.answer)])
    assert await counts(database, TurnEventBatch, Message) == [0, 0]

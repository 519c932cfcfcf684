"""With CONTEXT_COMPACTION the model sums up what no longer fits, and later prompts have that."""

import re
from collections.abc import AsyncGenerator
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select

from app.core.database import Database
from app.core.security import ADMIN
from app.models import Budget, Session, Turn
from app.services.ports import (
    ChatFinished,
    ChatItem,
    ChatRequest,
    FinishReason,
    ProviderRejected,
    TextDelta,
    UpstreamIncomplete,
)
from app.services.turns.context.prompt import estimate_tokens
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import reply_to_text

pytestmark = pytest.mark.anyio

CONTEXT_TOKENS = 2048
WORDS = "word " * 30


class RememberingChatModel(FakeChatModel):
    """Answers, and sums up: what it was asked for is told by the system prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.summaries: list[ChatRequest] = []
        self.summary = "Alice\n\nwants a   refund."
        self.error: Exception | None = None
        self.answer = "Yes. " + WORDS

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:
        if not request.messages[0].content.startswith("You keep the memory"):
            async for chunk in super().stream(request):
                yield chunk
            return
        self.summaries.append(request)
        if self.error:
            raise self.error
        yield TextDelta(self.summary)
        yield ChatFinished(FinishReason.STOP, "fake-1", 100, 10, 20)


@pytest.fixture
def chat_model() -> RememberingChatModel:
    return RememberingChatModel()


@pytest.fixture
async def long_session(client: httpx2.AsyncClient) -> UUID:
    agent = {"name": "Ada", "system_prompt": "Be brief.", "context_tokens": CONTEXT_TOKENS}
    agent_id = (await client.post("/agents", json=agent)).json()["id"]
    session = await client.post("/sessions", json={"agent_id": agent_id})
    return UUID(session.json()["id"])


def numbers(text: str) -> list[int]:
    """The numbers of the questions in a text."""
    return [int(number) for number in re.findall(r"Question (\d+)\.", text)]


async def talk(state: State, session_id: UUID, count: int, first: int = 1) -> None:
    engine = state["turns"]
    for number in range(first, first + count):
        await reply_to_text(engine, ADMIN, session_id, f"Question {number}. {WORDS}")


async def test_each_message_is_summed_up_once_and_shown_in_one_line(
    second_server: StartServer, long_session: UUID, chat_model: RememberingChatModel
) -> None:
    async with second_server(context_compaction=True) as state:
        await talk(state, long_session, 36)

    summed_up = [numbers(request.messages[1].content) for request in chat_model.summaries]
    assert 2 <= len(summed_up) < 18
    assert [number for part in summed_up for number in part] == [*range(1, summed_up[-1][-1] + 1)]
    assert "Summary of what came before: Alice wants a refund." in (
        chat_model.summaries[1].messages[1].content
    )
    for request in chat_model.requests:
        shown = [number for line in request.messages for number in numbers(line.content)]
        system = request.messages[0].content
        if shown[0] == 1:
            assert system == "Be brief."
        else:
            assert system == ("Be brief.\n\nEarlier in this conversation: Alice wants a refund.")
        assert shown == [*range(shown[0], shown[-1] + 1)]
        size = sum(estimate_tokens(line.content) for line in request.messages)
        assert size + (request.max_output_tokens or 0) <= CONTEXT_TOKENS


async def test_summary_is_billed_with_the_turn_that_needs_it(
    second_server: StartServer,
    long_session: UUID,
    chat_model: RememberingChatModel,
    database: Database,
) -> None:
    async with second_server(context_compaction=True) as state:
        await talk(state, long_session, 18)

    async with database.reading() as db:
        turns = (await db.scalars(select(Turn).order_by(Turn.user_seq))).all()
        [budget] = (await db.scalars(select(Budget))).all()
    tokens = [(turn.prompt_tokens, turn.cached_tokens, turn.completion_tokens) for turn in turns]
    with_summary = [("summary_ms" in (turn.timings or {})) for turn in turns]
    assert with_summary.count(True) == len(chat_model.summaries) > 0
    assert tokens == [(107, 12, 23) if each else (7, 2, 3) for each in with_summary]
    assert budget.tokens == sum(sent + got for sent, _, got in tokens if sent and got)
    assert budget.live_turns == 0


@pytest.mark.parametrize("error", [ProviderRejected("No."), UpstreamIncomplete("It broke off.")])
async def test_turn_goes_on_where_summing_up_fails_and_the_next_one_tries_again(
    second_server: StartServer,
    long_session: UUID,
    chat_model: RememberingChatModel,
    database: Database,
    error: Exception,
) -> None:
    chat_model.error = error
    async with second_server(context_compaction=True) as state:
        await talk(state, long_session, 18)
        asked = len(chat_model.summaries)
        chat_model.error = None
        await talk(state, long_session, 1, first=19)

    assert asked > 1
    assert len(chat_model.summaries) > asked
    assert numbers(chat_model.summaries[-1].messages[1].content)[0] == 1
    assert chat_model.requests[-1].messages[0].content.endswith("Alice wants a refund.")
    async with database.reading() as db:
        session = (await db.scalars(select(Session))).one()
    assert session.summary == "Alice wants a refund."


async def test_summary_that_ignores_its_limit_is_cut_and_billed_at_the_limit(
    second_server: StartServer, long_session: UUID, chat_model: RememberingChatModel
) -> None:
    chat_model.summary = "much " * 10_000
    async with second_server(context_compaction=True) as state:
        await talk(state, long_session, 14)

    assert chat_model.summaries
    last = chat_model.requests[-1]
    assert len(last.messages[0].content) <= 8 * CONTEXT_TOKENS // 8 + 200


async def test_without_the_setting_nothing_is_summed_up(
    second_server: StartServer, long_session: UUID, chat_model: RememberingChatModel
) -> None:
    async with second_server() as state:
        await talk(state, long_session, 14)

    assert not chat_model.summaries


async def test_summary_is_exported_and_kept_by_a_fork_that_has_its_messages(
    client: httpx2.AsyncClient,
    second_server: StartServer,
    long_session: UUID,
    database: Database,
) -> None:
    async with second_server(context_compaction=True) as state:
        await talk(state, long_session, 18)
    export = (await client.get(f"/sessions/{long_session}/export")).json()
    whole = (await client.post(f"/sessions/{long_session}/fork", json={})).json()["id"]
    part = await client.post(f"/sessions/{long_session}/fork", json={"up_to_seq": 2})

    assert export["summary"] == "Alice wants a refund."
    async with database.reading() as db:
        summaries = {str(each.id): each.summary for each in await db.scalars(select(Session))}
    assert summaries[whole] == "Alice wants a refund."
    assert summaries[part.json()["id"]] is None

"""Every turn has a receipt: by text and by voice, however it ended, each attempt once."""

from typing import Any
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import select

from app.core.config import Provider
from app.core.database import Database
from app.core.security import ADMIN
from app.models import Budget, Turn
from app.services.ports import ProviderUnavailable, UpstreamIncomplete
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.sse import parse
from tests.support.turns import Gate, abandon, reply_to_text, wait_until_settled
from tests.usage.conftest import TURN_COST

pytestmark = pytest.mark.anyio


async def budget(database: Database) -> tuple[int, int, int]:
    """Tokens, nano-dollars and live turns of the local caller's row."""
    async with database.reading() as db:
        row = (await db.execute(select(Budget.tokens, Budget.nanos, Budget.live_turns))).one()
    return row[0], row[1], row[2]


async def turns_usage(client: httpx2.AsyncClient, turn_id: object) -> dict[str, Any]:
    return (await client.get(f"/turns/{turn_id}")).json()["usage"]


async def test_text_turn_has_its_exact_cost_everywhere(
    client: httpx2.AsyncClient, database: Database, session_id: str
) -> None:
    body = {"session_id": session_id, "content": "Hi"}
    reply = (await client.post("/messages/text", json=body)).json()
    events = await client.get(f"/turns/{reply['turn_id']}/events")

    assert reply["usage"]["cost_usd"] == TURN_COST
    assert (await turns_usage(client, reply["turn_id"]))["cost_usd"] == TURN_COST
    assert '"cost_usd":4.04e-6' in events.text
    assert await budget(database) == (10, 4040, 0)


async def test_voice_is_billed_like_text(
    client: httpx2.AsyncClient, database: Database, session_id: str, speech: bytes
) -> None:
    response = await client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.wav", speech)}
    )

    usage = (await client.get(f"/turns/{response.headers['x-turn-id']}")).json()["usage"]
    seconds = usage["speech_in_seconds"]
    spoken = len("Hello there!") * 0.000015
    assert seconds > 1
    assert usage["speech_out_characters"] == len("Hello there!")
    assert usage["cost_usd"] == pytest.approx(TURN_COST + seconds / 60 * 0.0045 + spoken, abs=1e-9)
    assert await budget(database) == (10, round(usage["cost_usd"] * 1e9), 0)


async def test_only_the_output_that_is_asked_for_is_reserved_and_billed(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
) -> None:
    reserved: dict[tuple[str, str], int] = {}

    async def turn(modality: str, output: str) -> dict[str, Any]:
        gate = Gate()
        chat_model.while_thinking = gate
        fields = {"session_id": session_id, "output": output}
        prefer = {"Prefer": "respond-async"}
        before = (await budget(database))[1]
        if modality == "text":
            body = fields | {"content": "Hi"}
            sent = await client.post("/messages/text", json=body, headers=prefer)
        else:
            files = {"audio": ("x.wav", speech)}
            sent = await client.post("/messages/voice", data=fields, files=files, headers=prefer)
        await gate.arrived.wait()
        reserved[modality, output] = (await budget(database))[1] - before
        gate.opened.set()
        path = sent.headers["location"]
        return (await client.get(path, params={"wait_seconds": 30})).json()["usage"]

    await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
    plain, spoken = await turn("text", "text"), await turn("text", "voice")
    written, both = await turn("voice", "text"), await turn("voice", "voice")

    speech_cost, seconds = len("Hello there!") * 0.000015, written["speech_in_seconds"]
    heard_cost = seconds / 60 * 0.0045
    assert plain["cost_usd"] == TURN_COST
    assert spoken["cost_usd"] == pytest.approx(TURN_COST + speech_cost, abs=1e-9)
    assert written["cost_usd"] == pytest.approx(TURN_COST + heard_cost, abs=1e-9)
    assert both["cost_usd"] == pytest.approx(TURN_COST + heard_cost + speech_cost, abs=1e-9)
    assert [usage["speech_out_characters"] for usage in (plain, spoken, written, both)] == [
        None, 12, None, 12
    ]  # fmt: skip
    # Each later prompt is longer; the reserved speech of an answer costs far more than that.
    assert reserved["text", "voice"] > 100 * reserved["text", "text"]
    assert reserved["voice", "voice"] > 100 * reserved["voice", "text"]


async def test_unknown_price_is_null(second_server: StartServer, session_id: str) -> None:
    async with second_server(prices=None) as state:
        reply = await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")

    assert reply.usage.prompt_tokens == 7
    assert reply.usage.cost_usd is None


async def test_cancelled_turn_has_what_was_used_as_an_estimate(
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    live = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    assert (await budget(database))[2] == 1

    await state["turns"].cancel(ADMIN, live.record.id)

    usage = await turns_usage(client, live.record.id)
    assert usage["estimated"] is True
    assert usage["prompt_tokens"] == 7 + 4
    assert usage["completion_tokens"] == 0
    # Its model is the server's default, which has a list price; the answer's has another.
    assert usage["cost_usd"] == 0.0000022
    assert await budget(database) == (11, 2200, 0)


async def test_turn_that_the_provider_refused_costs_nothing(
    client: httpx2.AsyncClient, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("Not now.", retry_after_seconds=99)

    chat_model.while_thinking = be_away
    body = {"session_id": session_id, "content": "Hi"}
    failed = (await client.post("/messages/text", json=body)).json()

    usage = await turns_usage(client, failed["turn_id"])
    assert (usage["prompt_tokens"], usage["cost_usd"], usage["estimated"]) == (0, 0, False)
    assert await budget(database) == (0, 0, 0)


async def test_recording_that_is_heard_is_paid_though_the_answer_fails(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, session_id: str, speech: bytes
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("Not now.", retry_after_seconds=99)

    chat_model.while_thinking = be_away
    failed = await client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.wav", speech)}
    )

    usage = await turns_usage(client, failed.json()["turn_id"])
    assert usage["cost_usd"] == pytest.approx(usage["speech_in_seconds"] / 60 * 0.0045, abs=1e-9)


async def test_recording_that_is_not_heard_is_not_paid(
    client: httpx2.AsyncClient, transcriber: FakeTranscriber, session_id: str, speech: bytes
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("Not now.", retry_after_seconds=99)

    transcriber.while_hearing = be_away
    failed = await client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.wav", speech)}
    )

    assert (await turns_usage(client, failed.json()["turn_id"]))["cost_usd"] == 0


async def test_what_was_said_before_speech_failed_is_paid(
    client: httpx2.AsyncClient,
    speaker: FakeSpeaker,
    chat_model: FakeChatModel,
    session_id: str,
    speech: bytes,
) -> None:
    first, second = "This is the first sentence.", "And this is the second sentence."
    chat_model.answer = f"{first} {second} The third one is never begun."

    async def break_off() -> None:
        if len(speaker.said) > 1:
            raise UpstreamIncomplete("It broke off.")

    speaker.while_speaking = break_off
    events = await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("x.wav", speech)},
        headers={"Accept": "text/event-stream"},
    )

    created, *_, last = parse(events.text.splitlines())
    usage = await turns_usage(client, created.data["turn_id"])
    assert last.type == "turn.failed"
    said = {sentence for sentence, _ in speaker.said}  # one may be tried again
    assert said >= {first, second}
    assert usage["speech_out_characters"] == sum(len(sentence) for sentence in said)


async def test_each_attempt_that_is_settled_is_billed_once(
    client: httpx2.AsyncClient, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    async def break_off() -> None:
        raise UpstreamIncomplete("It broke off.")

    body, key = {"session_id": session_id, "content": "Hi"}, {"Idempotency-Key": "once"}
    chat_model.while_thinking = break_off
    failed = await client.post("/messages/text", json=body, headers=key)
    first = await turns_usage(client, failed.json()["turn_id"])
    chat_model.while_thinking = None
    answered = (await client.post("/messages/text", json=body, headers=key)).json()
    replayed = (await client.post("/messages/text", json=body, headers=key)).json()

    assert first["prompt_tokens"] == 11
    assert answered["usage"]["prompt_tokens"] == 11 + 7
    assert answered["usage"]["cost_usd"] == 0.0000022 + TURN_COST
    assert replayed["usage"] == answered["usage"]
    assert await budget(database) == (11 + 10, 2200 + 4040, 0)


async def test_turn_that_is_taken_over_is_billed_once(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    await abandon(database, turn.record.id)
    chat_model.while_thinking = None

    async with second_server():
        await wait_until_settled(database)
        gate.opened.set()
        with anyio.fail_after(60):
            await turn.settled.wait()

    async with database.reading() as db:
        rows = (await db.execute(select(Turn.attempt, Turn.prompt_tokens, Turn.cost_nanos))).all()
    assert [tuple(row) for row in rows] == [(2, 7, 4040)]
    assert await budget(database) == (10, 4040, 0)


async def test_embedded_engine_costs_nothing_whatever_its_models_are_called(
    second_server: StartServer, session_id: str
) -> None:
    async with second_server(chat_provider=Provider.EMBEDDED, prices=None) as state:
        reply = await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")

    assert reply.usage.cost_usd == 0


@pytest.mark.parametrize(
    ("provider", "agents_model", "expected"),
    [
        (Provider.EMBEDDED, None, None),
        (Provider.EMBEDDED, "gpt-9", None),
        (Provider.OPENAI, None, "gpt-6-luna"),
        (Provider.OPENAI, "gpt-9", "gpt-9"),
    ],
)
async def test_cancelled_turn_names_no_model_that_cannot_have_answered(
    second_server: StartServer,
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    provider: Provider,
    agents_model: str | None,
    expected: str | None,
) -> None:
    agent = await client.post("/agents", json={"name": "Ada", "model": agents_model})
    body = {"agent_id": agent.json()["id"]}
    session_id = (await client.post("/sessions", json=body)).json()["id"]
    gate = Gate()
    chat_model.while_thinking = gate
    async with second_server(chat_provider=provider) as state:
        live = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
        await gate.arrived.wait()
        await state["turns"].cancel(ADMIN, live.record.id)

    turn = (await client.get(f"/turns/{live.record.id}")).json()
    assert (turn["status"], turn["model"]) == ("cancelled", expected)
    usage = (await client.get("/usage", params={"group_by": "model"})).json()
    assert [row["model"] for row in usage] == [expected]


async def test_answer_without_a_count_is_estimated(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    chat_model.counts = (None, None, None)

    body = {"session_id": session_id, "content": "Hi"}
    reply = (await client.post("/messages/text", json=body)).json()

    assert reply["usage"]["estimated"] is True
    assert reply["usage"]["prompt_tokens"] == 11
    assert reply["usage"]["completion_tokens"] == 8

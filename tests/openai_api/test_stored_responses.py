"""`/v1/responses` as stored turns of sessions: what is kept, continued, listed and deleted."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import func, select, update

from app.core.database import Database
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID
from app.models import Message, Session, Turn, utc_now
from app.services import crud
from app.services.prompt_lines import PromptAnswer, PromptCall, PromptResult
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
Json = dict[str, Any]


async def ask(client: httpx2.AsyncClient, status: int = 200, **body: Any) -> Json:
    response = await client.post("/v1/responses", json={"model": "agent-ada", "input": "Hi"} | body)
    assert response.status_code == status, response.text
    answer: Json = response.json()
    return answer


async def call(
    client: httpx2.AsyncClient, method: str, path: str, status: int = 200, **options: Any
) -> Json:
    response = await client.request(method, f"/v1/{path}", **options)
    assert response.status_code == status, response.text
    answer: Json = response.json()
    return answer


async def count(database: Database, table: type[Any]) -> int:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(table)) or 0


def said(answer: Json) -> str:
    text: str = answer["output"][0]["content"][0]["text"]
    return text


async def test_response_is_kept_and_is_the_same_later(client: httpx2.AsyncClient) -> None:
    answer = await ask(
        client,
        instructions="Be kind.",
        metadata={"a": "b"},
        temperature=0.5,
        max_output_tokens=9,
        tools=[TOOL],
        tool_choice="none",
        text={"format": {"type": "text"}},
    )

    assert (answer["status"], answer["store"], said(answer)) == ("completed", True, "Hello there!")
    assert (answer["instructions"], answer["metadata"]) == ("Be kind.", {"a": "b"})
    assert (answer["temperature"], answer["tool_choice"]) == (0.5, "none")
    assert answer["tools"] == [TOOL | {"description": None}]
    assert await call(client, "GET", f"responses/{answer['id']}") == answer


async def test_instructions_are_of_one_turn_and_the_history_goes_on(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    first = await ask(client, input="One", instructions="Be kind.")
    second = await ask(client, input="Two", previous_response_id=first["id"])

    assert chat_model.prompts == [
        [("system", "Be brief.\n\nBe kind."), ("user", "One")],
        [("system", "Be brief."), ("user", "One"), ("assistant", "Hello there!"), ("user", "Two")],
    ]
    assert second["previous_response_id"] == first["id"]


async def test_an_earlier_response_is_continued_in_a_copy(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, database: Database
) -> None:
    first = await ask(client, input="One")
    await ask(client, input="Two", previous_response_id=first["id"])
    assert await count(database, Session) == 1

    other = await ask(client, input="Three", previous_response_id=first["id"])

    assert chat_model.prompts[-1][1:] == [
        ("user", "One"), ("assistant", "Hello there!"), ("user", "Three"),
    ]  # fmt: skip
    assert await count(database, Session) == 2
    listed = await call(client, "GET", f"responses/{other['id']}/input_items")
    assert [item["content"][0]["text"] for item in listed["data"]] == ["Three"]


async def test_another_agent_continues_a_response_in_a_copy(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    await client.post("/agents", json={"name": "Eve", "system_prompt": "You are Eve."})
    first = await ask(client, input="One")

    await ask(client, input="Two", model="agent-eve", previous_response_id=first["id"])

    assert chat_model.prompts[-1] == [
        ("system", "You are Eve."),
        ("user", "One"),
        ("assistant", "Hello there!"),
        ("user", "Two"),
    ]


async def test_refused_copy_leaves_nothing(client: httpx2.AsyncClient, database: Database) -> None:
    first = await ask(client, input="One")
    await ask(client, input="Two", previous_response_id=first["id"])
    output = {"type": "function_call_output", "call_id": "call_x", "output": "Sunny"}

    refused = await ask(client, 400, input=[output], previous_response_id=first["id"])

    assert refused["error"]["code"] == "tool_result_unknown"
    assert await count(database, Session) == 1


async def test_unstored_response_reads_a_stored_one_and_stores_nothing(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, database: Database
) -> None:
    first = await ask(client, input="One")

    answer = await ask(client, input="Two", previous_response_id=first["id"], store=False)

    assert [text for _, text in chat_model.prompts[-1][1:]] == ["One", "Hello there!", "Two"]
    assert await count(database, Message) == 2
    await call(client, "GET", f"responses/{answer['id']}", 404)


async def test_history_of_the_client_is_stored_once_and_shown(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    items: list[Json] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Sunny"},
    ]

    answer = await ask(client, input=items, tools=[TOOL])
    again = await ask(client, input="And then?", previous_response_id=answer["id"])

    shown = [
        PromptAnswer("assistant", "Let me see.", (PromptCall("c1", "weather", "{}"),)),
        PromptResult("tool", "Sunny", "c1"),
    ]
    assert chat_model.prompts[0][:2] == [
        ("system", "Be brief.\n\nBe kind."), ("user", "Weather?"),
    ]  # fmt: skip
    assert [list(request.messages[2:4]) for request in chat_model.requests] == [shown, shown]
    listed = await call(client, "GET", f"responses/{answer['id']}/input_items?order=asc")
    assert [item["type"] for item in listed["data"]] == [
        "message", "message", "function_call", "function_call_output",
    ]  # fmt: skip
    assert again["status"] == "completed"


async def test_calls_of_the_clients_tools_are_answered_by_the_next_input(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    chat_model.calls = [("weather", '{"city": "Bern"}')]
    asked = await ask(client, input="Weather?", tools=[TOOL])
    (wanted,) = asked["output"]
    assert (wanted["type"], wanted["name"]) == ("function_call", "weather")
    assert await call(client, "GET", f"responses/{asked['id']}") == asked
    output = {"type": "function_call_output", "call_id": wanted["call_id"], "output": "Sunny"}
    previous: dict[str, Any] = {"previous_response_id": asked["id"], "tools": [TOOL]}

    both = [output, {**output, "call_id": "c2"}]
    unanswered = await ask(client, status=400, input="Never mind", **previous)
    unknown = await ask(client, status=400, input=both, **previous)
    answer = await ask(client, status=200, input=[output], **previous)

    assert (unanswered["error"]["code"], unanswered["error"]["param"]) == (
        "tool_calls_unanswered",
        "input",
    )
    assert unknown["error"]["code"] == "tool_result_unknown"
    assert said(answer) == "Hello there!"
    assert list(chat_model.requests[-1].messages[2:]) == [
        PromptAnswer(
            "assistant", "", (PromptCall(wanted["call_id"], "weather", '{"city": "Bern"}'),)
        ),
        PromptResult("tool", "Sunny", wanted["call_id"]),
    ]


async def test_response_in_the_background_is_told_of_and_cancelled(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    chat_model.while_thinking = Gate()
    begun = await ask(client, background=True)
    path = f"responses/{begun['id']}"

    waiting = await call(client, "GET", path)
    refused = await call(client, "DELETE", path, 409)
    cancelled = await call(client, "POST", f"{path}/cancel")
    again = await call(client, "POST", f"{path}/cancel")

    assert (begun["status"], begun["background"], begun["output"]) == ("in_progress", True, [])
    assert waiting == begun
    assert refused["error"]["code"] == "session_busy"
    assert cancelled["status"] == "cancelled"
    assert again == cancelled == await call(client, "GET", path)


async def test_two_at_once_in_one_conversation_keep_their_order(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    conversation = await call(client, "POST", "conversations", json={})
    gate = chat_model.while_thinking = Gate()
    first = await ask(client, input="One", conversation=conversation["id"], background=True)
    second = await ask(client, input="Two", conversation=conversation, background=True)
    busy = await client.post(
        "/v1/responses",
        json={"model": "agent-ada", "input": "Three", "conversation": conversation["id"]},
        headers={"X-On-Busy": "reject"},
    )
    gate.opened.set()

    stream = await client.get(f"/v1/responses/{second['id']}?stream=true")
    assert (first["status"], second["status"]) == ("in_progress", "queued")
    assert (busy.status_code, busy.headers["x-should-retry"]) == (409, "false")
    assert "event: response.queued\n" in stream.text
    assert "event: response.completed\n" in stream.text
    assert [text for _, text in chat_model.prompts[-1][1:]] == ["One", "Hello there!", "Two"]


async def test_stream_is_resumed_at_any_event(client: httpx2.AsyncClient) -> None:
    body = {"model": "agent-ada", "input": "Hi", "stream": True}
    sent = (await client.post("/v1/responses", json=body)).text.split("\n\n")
    response_id = sent[0].split('"id":"')[1].split('"')[0]
    assert sent[0].startswith("event: response.created\n")
    assert sent[1].startswith("event: response.in_progress\n")
    assert sent[-2:] == ["data: [DONE]", ""]

    for after in range(-1, len(sent) - 3):
        path = f"/v1/responses/{response_id}?stream=true&starting_after={after}"
        resumed = await client.get(path)
        assert resumed.text.split("\n\n") == sent[after + 1 :]
    whole = await call(client, "GET", f"responses/{response_id}")
    assert f'"response":{httpx2.Response(200, json=whole).text}' in sent[-3]


async def test_deleted_response_is_gone_and_takes_its_hidden_session_along(
    client: httpx2.AsyncClient, database: Database
) -> None:
    first = await ask(client, input="One")
    second = await ask(client, input="Two", previous_response_id=first["id"])

    deleted = await call(client, "DELETE", f"responses/{first['id']}")
    await call(client, "GET", f"responses/{first['id']}", 404)
    await call(client, "DELETE", f"responses/{first['id']}", 404)
    assert await count(database, Session) == 1
    await ask(client, 400, input="Three", previous_response_id=first["id"])
    await call(client, "DELETE", f"responses/{second['id']}")

    assert deleted == {"id": first["id"], "object": "response", "deleted": True}
    assert [await count(database, table) for table in (Session, Turn, Message)] == [0, 0, 0]
    usage = (await client.get("/usage")).json()
    assert usage[0]["turns"] == 2


async def test_hidden_sessions_are_listed_on_demand(client: httpx2.AsyncClient) -> None:
    await ask(client)

    assert (await client.get("/sessions")).json() == []
    assert (await client.get("/sessions/export")).text == ""
    assert len((await client.get("/sessions?hidden=true")).json()) == 1


async def test_native_turn_is_a_response_and_is_continued(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    session = (await client.post("/sessions", json={"agent_id": agent_id})).json()
    message = {"session_id": session["id"], "content": "One"}
    reply = (await client.post("/messages/text", json=message)).json()
    response_id = "resp_" + reply["turn_id"].replace("-", "")

    seen = await call(client, "GET", f"responses/{response_id}")
    await ask(client, input="Two", previous_response_id=response_id)

    assert (seen["model"], said(seen)) == ("agent-ada", "Hello there!")
    history = (await client.get(f"/sessions/{session['id']}")).json()["messages"]
    assert [line["content"] for line in history][::2] == ["One", "Two"]


async def test_key_and_sdk_retry_return_the_same_response(
    client: httpx2.AsyncClient, database: Database
) -> None:
    body = {"model": "agent-ada", "input": "Hi"}

    async def post(**headers: str) -> httpx2.Response:
        return await client.post("/v1/responses", json=body, headers=headers)

    keyed = [await post(**{"Idempotency-Key": "k"}) for _ in range(2)]
    tries = [await post(**{"x-stainless-retry-count": number}) for number in ("0", "1", "2")]
    other = await post(**{"x-stainless-retry-count": "0"})

    assert keyed[0].json() == keyed[1].json()
    assert len({each.json()["id"] for each in tries}) == 1
    assert [each.headers.get("idempotent-replayed") for each in tries] == [None, "true", "true"]
    assert other.json()["id"] != tries[0].json()["id"]
    assert await count(database, Turn) == 3


async def test_unknown_ids_of_every_kind_are_not_found(client: httpx2.AsyncClient) -> None:
    answer = await ask(client)
    digits = answer["id"].removeprefix("resp_")

    for wrong in (f"resp_{uuid4().hex}", f"conv_{digits}", digits, "resp_x", "%00"):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            await call(client, method, f"responses/{wrong}{path}", 404)
        await call(client, "GET", f"responses/{wrong}/input_items", 404)
        await call(client, "GET", f"conversations/{wrong}", 404)


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("conversation", {"conversation": "conv_1", "previous_response_id": "resp_1"}),
        ("background", {"background": True, "store": False}),
        ("truncation", {"truncation": "disabled"}),
        ("X-On-Busy", {}),
    ],
)
async def test_bad_parameter_is_named(
    client: httpx2.AsyncClient, param: str, changes: Json
) -> None:
    headers = {} if changes else {"X-On-Busy": "maybe"}
    body = {"model": "agent-ada", "input": "Hi"} | changes
    response = await client.post("/v1/responses", json=body, headers=headers)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("as_reference", [True, False])
async def test_history_with_our_ids_is_not_stored_again(
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    database: Database,
    *,
    as_reference: bool,
) -> None:
    chat_model.calls = [("weather", "{}")]
    question: Json = {"role": "user", "content": "Weather?"}
    history = [{"role": "developer", "content": "Be kind."}, question]

    def again(item: Json) -> Json:
        return {"type": "item_reference", "id": item["id"]} if as_reference else item

    first = await ask(client, input=history, tools=[TOOL])
    (wanted,) = first["output"]
    output = {"type": "function_call_output", "call_id": wanted["call_id"], "output": "Sunny"}
    history = [*history, again(wanted), output]
    second = await ask(client, input=history, tools=[TOOL])
    history = [*history, again(second["output"][0]), {"role": "user", "content": "And now?"}]
    third = await ask(client, input=history)

    assert await count(database, Session) == 1
    assert await count(database, Message) == 6
    assert third["previous_response_id"] is None
    assert [text for _, text in chat_model.prompts[-1]] == [
        "Be brief.\n\nBe kind.", "Weather?", "", "Sunny", "Hello there!", "And now?",
    ]  # fmt: skip
    listed = await call(client, "GET", f"responses/{third['id']}/input_items?order=asc")
    assert len(listed["data"]) == 5
    changed = [{"role": "user", "content": "Other?"}, *history[2:]]
    await ask(client, input=changed)
    assert await count(database, Session) == 2


async def test_reference_is_resolved_and_an_unknown_one_refused(
    client: httpx2.AsyncClient,
) -> None:
    answer = await ask(client)
    reference = {"type": "item_reference", "id": answer["output"][0]["id"]}
    unstored = await ask(
        client, input=[reference, *[{"role": "user", "content": "?"}]], store=False
    )
    unknown = {"type": "item_reference", "id": f"msg_{uuid4().hex}"}

    refused = await ask(client, 400, input=[unknown])

    assert unstored["status"] == "completed"
    assert refused["error"]["param"] == "input[0].id"


async def test_copy_whose_server_died_before_its_turn_is_deleted_after_a_start(
    client: httpx2.AsyncClient, database: Database, second_server: StartServer
) -> None:
    first = await ask(client)
    await ask(client, previous_response_id=first["id"])
    used = await ask(client, previous_response_id=first["id"])  # in a copy
    await call(client, "POST", "conversations", json={})  # hidden, and without a turn
    original = UUID(first["id"].removeprefix("resp_"))
    long_ago = utc_now() - timedelta(hours=1)
    async with database.transaction() as db:
        session_id = await db.scalar(select(Turn.session_id).where(Turn.id == original))
        assert session_id
        copies: list[UUID] = []
        for _ in range(2):
            fork = await crud.fork_session(db, ADMIN, session_id, up_to_seq=2)
            fork.is_hidden = True
            copies.append(fork.id)
        abandoned, young = copies
        await db.execute(update(Session).where(Session.id != young).values(created_at=long_ago))

    async def is_gone() -> bool:
        async with database.reading() as db:
            return await db.get(Session, (DEFAULT_WORKSPACE_ID, abandoned)) is None

    before = await count(database, Session)
    async with second_server():
        await until(is_gone)

    assert await count(database, Session) == before - 1
    assert said(await call(client, "GET", f"responses/{used['id']}")) == "Hello there!"
    async with database.reading() as db:
        left = await db.scalars(select(Message.id).where(Message.session_id == abandoned))
        assert left.all() == []

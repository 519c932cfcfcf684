"""`/v1/conversations`: sessions and their messages as conversations and items."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.openai_api.test_stored_responses import Json, ask, call
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]


async def begin(client: httpx2.AsyncClient, **body: Any) -> str:
    conversation = await call(client, "POST", "conversations", json=body)
    conversation_id: str = conversation["id"]
    return conversation_id


def texts(page: Json) -> list[str]:
    return [item["content"][0]["text"] for item in page["data"]]


async def test_conversation_is_made_read_changed_and_deleted(client: httpx2.AsyncClient) -> None:
    made = await call(client, "POST", "conversations", json={"metadata": {"a": "b"}})
    path = f"conversations/{made['id']}"

    read = await call(client, "GET", path)
    changed = await call(client, "POST", path, json={"metadata": {"c": "d"}})
    deleted = await call(client, "DELETE", path)

    assert made == read
    assert (made["object"], made["metadata"]) == ("conversation", {"a": "b"})
    assert changed == made | {"metadata": {"c": "d"}}
    assert deleted == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    await call(client, "GET", path, 404)
    await call(client, "DELETE", path, 404)


async def test_first_response_names_the_agent_and_another_one_is_refused(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, agent_id: str
) -> None:
    await client.post("/agents", json={"name": "Eve", "system_prompt": "You are Eve."})
    conversation = await begin(client, items=[{"role": "user", "content": "Call me Al."}])
    assert (await client.get("/sessions?hidden=true")).json() == []

    answer = await ask(client, input="Hi", conversation=conversation)
    refused = await ask(client, 400, model="agent-eve", conversation=conversation)

    assert chat_model.prompts[0][1:] == [("user", "Call me Al.\n\nHi")]
    assert answer["conversation"] == {"id": conversation}
    assert (refused["error"]["code"], refused["error"]["param"]) == ("other_agent_answers", "model")
    (session,) = (await client.get("/sessions")).json()
    assert (session["agent_id"], "conv_" + session["id"].replace("-", "")) == (
        agent_id,
        conversation,
    )


async def test_conversation_without_an_agent_is_no_session_yet(client: httpx2.AsyncClient) -> None:
    conversation = await begin(client)
    session_id = conversation.removeprefix("conv_")

    read = await client.get(f"/sessions/{session_id}")
    body = {"session_id": session_id, "content": "Hi"}
    sent = await client.post("/messages/text", json=body)

    assert (read.status_code, sent.status_code) == (404, 404)


async def test_items_are_listed_in_pages_in_both_orders(client: httpx2.AsyncClient) -> None:
    posted = [{"role": "user", "content": f"{n}"} for n in range(5)]
    conversation = await begin(client, items=posted)
    await ask(client, input="Hi", conversation=conversation)
    path = f"conversations/{conversation}/items"

    newest = await call(client, "GET", f"{path}?limit=3")
    rest = await call(client, "GET", f"{path}?limit=9&after={newest['last_id']}")
    oldest = await call(client, "GET", f"{path}?order=asc&limit=2")
    next_page = await call(client, "GET", f"{path}?order=asc&limit=2&after={oldest['last_id']}")

    assert texts(newest) == ["Hello there!", "Hi", "4"]
    assert (newest["has_more"], rest["has_more"]) == (True, False)
    assert texts(rest) == ["3", "2", "1", "0"]
    assert texts(oldest) + texts(next_page) == ["0", "1", "2", "3"]
    assert newest["first_id"] == newest["data"][0]["id"]
    await call(client, "GET", f"{path}?after=msg_{uuid4().hex}", 404)
    await call(client, "GET", f"{path}?after=x", 404)


async def test_items_are_added_read_and_wiped(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    conversation = await begin(client)
    path = f"conversations/{conversation}/items"
    items = [
        {"type": "message", "role": "user", "content": "Secret"},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": [{"type": "input_text", "text": "Fine"}]},
    ]

    added = await call(client, "POST", path, json={"items": items})
    secret = added["data"][0]
    read = await call(client, "GET", f"{path}/{secret['id']}")
    left = await call(client, "DELETE", f"{path}/{secret['id']}")
    answer = await ask(client, input="Hi", conversation=conversation)
    reply = answer["output"][0]
    assert await call(client, "GET", f"{path}/{reply['id']}") == reply
    await call(client, "DELETE", f"{path}/{reply['id']}")

    assert texts(added) == ["Secret", "Noted.", "Fine"]
    assert read == secret
    assert left["id"] == conversation
    await call(client, "GET", f"{path}/{secret['id']}", 404)
    assert texts(await call(client, "GET", path)) == ["Hi", "Fine", "Noted."]
    assert "Secret" not in str(chat_model.prompts)
    stream = await client.get(f"/v1/responses/{answer['id']}?stream=true")
    assert (stream.status_code, "Hello" in stream.text) == (404, False)


async def test_calls_and_their_outputs_are_items(client: httpx2.AsyncClient) -> None:
    wanted = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "Sunny"}

    conversation = await begin(client, items=[{"role": "user", "content": "?"}, wanted, output])

    page = await call(client, "GET", f"conversations/{conversation}/items?order=asc")
    _, first, second = page["data"]
    assert {name: first[name] for name in wanted} == wanted
    assert {name: second[name] for name in output} == output
    assert (first["id"][:3], second["id"][:4]) == ("fc_", "fco_")


async def test_running_answer_is_no_item_and_goes_with_its_conversation(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    conversation = await begin(client)
    gate = chat_model.while_thinking = Gate()
    answer = await ask(client, input="Hi", conversation=conversation, background=True)
    await gate.arrived.wait()

    assert texts(await call(client, "GET", f"conversations/{conversation}/items")) == ["Hi"]
    await call(client, "DELETE", f"conversations/{conversation}")

    await call(client, "GET", f"responses/{answer['id']}", 404)


async def test_deleted_response_leaves_its_items_in_the_conversation(
    client: httpx2.AsyncClient,
) -> None:
    conversation = await begin(client)
    answer = await ask(client, input="Hi", conversation=conversation)

    await call(client, "DELETE", f"responses/{answer['id']}")

    page = await call(client, "GET", f"conversations/{conversation}/items")
    assert texts(page) == ["Hello there!", "Hi"]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("metadata", {"metadata": {str(n): "x" for n in range(17)}}),
        ("items", {"items": [{"role": "user", "content": "x"}] * 21}),
        ("items", {"items": [{"role": "system", "content": "x"}]}),
        ("items[0].role", {"items": [{"role": "robot", "content": "x"}]}),
        ("items[0].type", {"items": [{"type": "web_search_call"}]}),
    ],
)
async def test_bad_parameter_is_named(client: httpx2.AsyncClient, param: str, body: Json) -> None:
    refused = await call(client, "POST", "conversations", 400, json=body)

    assert refused["error"]["param"] == param


async def test_key_of_a_request_makes_one_conversation(client: httpx2.AsyncClient) -> None:
    made = [
        await call(client, "POST", "conversations", json={}, headers={"Idempotency-Key": "k"})
        for _ in range(2)
    ]

    assert made[0] == made[1]

"""`/v1/responses` with `store`: turns of sessions, with the official SDK's shapes over HTTP."""

from typing import Any

import httpx2
import pytest

from tests.support.fake_providers import FakeChatModel

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]


async def ask(client: httpx2.AsyncClient, status: int = 200, **body: Any) -> Any:
    response = await client.post("/v1/responses", json={"model": "agent-ada", "input": "Hi"} | body)
    assert response.status_code == status, response.text
    return response.json()


async def get(client: httpx2.AsyncClient, path: str, status: int = 200) -> Any:
    response = await client.get(f"/v1/{path}")
    assert response.status_code == status, response.text
    return response.json()


async def test_response_is_kept_and_is_the_same_later(client: httpx2.AsyncClient) -> None:
    answer = await ask(
        client, instructions="Be kind.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=9
    )

    assert answer["status"] == "completed"
    assert answer["store"] is True
    assert answer["instructions"] == "Be kind."
    assert answer["metadata"] == {"a": "b"}
    assert await get(client, f"responses/{answer['id']}") == answer


async def test_instructions_are_of_one_turn_and_the_history_goes_on(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    first = await ask(client, input="One", instructions="Be kind.")
    second = await ask(client, input="Two", previous_response_id=first["id"])

    assert chat_model.prompts[0] == [("system", "Be brief.\n\nBe kind."), ("user", "One")]
    assert chat_model.prompts[1] == [
        ("system", "Be brief."), ("user", "One"), ("assistant", "Hello there!"), ("user", "Two"),
    ]  # fmt: skip
    assert second["previous_response_id"] == first["id"]

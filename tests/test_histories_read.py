"""Histories as clients read them: from either end, with what each answer took."""

from uuid import uuid4

import httpx2
import pytest

from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio


async def say(client: httpx2.AsyncClient, session_id: str, *contents: str) -> None:
    for content in contents:
        response = await client.post(
            "/messages/text", json={"session_id": session_id, "content": content}
        )
        assert response.status_code == 200


async def read_pages(client: httpx2.AsyncClient, url: str | None) -> list[list[int]]:
    pages: list[list[int]] = []
    while url:
        response = await client.get(url)
        assert response.status_code == 200, response.text
        pages.append([message["seq"] for message in response.json()])
        url = response.links.get("next", {}).get("url")
    return pages


@pytest.mark.parametrize(
    ("query", "pages"),
    [
        ("limit=4", [[1, 2, 3, 4], [5, 6]]),
        ("limit=4&order=asc", [[1, 2, 3, 4], [5, 6]]),
        ("limit=4&order=desc", [[6, 5, 4, 3], [2, 1]]),
        ("limit=6&order=desc", [[6, 5, 4, 3, 2, 1]]),
        ("limit=2&order=desc&before=5", [[4, 3], [2, 1]]),
        ("limit=2&before=4", [[1, 2], [3]]),
        ("before=100&order=desc&limit=100", [[6, 5, 4, 3, 2, 1]]),
    ],
)
async def test_history_is_read_from_either_end(
    client: httpx2.AsyncClient, session_id: str, query: str, pages: list[list[int]]
) -> None:
    await say(client, session_id, "1", "2", "3")

    assert await read_pages(client, f"/sessions/{session_id}/messages?{query}") == pages


@pytest.mark.parametrize("query", ["order=newest", "before=0", "before=x", f"before={2**31}"])
async def test_wrong_page_of_a_history_is_refused(
    client: httpx2.AsyncClient, session_id: str, query: str
) -> None:
    response = await client.get(f"/sessions/{session_id}/messages?{query}")

    assert response.status_code == 422


@pytest.mark.parametrize("turns", [1, 9])
async def test_answers_of_a_history_have_what_their_turns_took(
    client: httpx2.AsyncClient, session_id: str, turns: int
) -> None:
    await say(client, session_id, *map(str, range(turns)))  # above 16 messages it is streamed

    whole = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    pages = (await client.get(f"/sessions/{session_id}/messages")).json()
    turn = (await client.get(f"/turns/{whole[1]['turn_id']}")).json()

    assert whole == pages
    assert [message["usage"] is None for message in whole] == [True, False] * turns
    assert whole[0]["timings"] is whole[0]["model"] is whole[0]["attempt"] is None
    for name in ("usage", "timings", "model", "attempt", "error"):
        assert whole[1][name] == turn[name], name
    assert whole[1]["usage"]["prompt_tokens"] == 7


async def test_failed_answer_of_a_history_says_why(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    async def fail() -> None:
        raise RuntimeError("planted")

    chat_model.while_thinking = fail
    await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    answer = (await client.get(f"/sessions/{session_id}")).json()["messages"][1]

    assert answer["status"] == "failed"
    assert answer["error"]["code"] == "internal-error"


async def test_copied_and_imported_messages_took_nothing(
    client: httpx2.AsyncClient, agent_id: str, session_id: str
) -> None:
    await say(client, session_id, "1")
    fork = await client.post(f"/sessions/{session_id}/fork", json={})
    lines = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    imported = await client.post("/sessions", json={"agent_id": agent_id, "messages": lines})

    for made in (fork, imported):
        history = (await client.get(f"/sessions/{made.json()['id']}")).json()["messages"]
        assert [message["usage"] for message in history] == [None, None]


async def test_page_before_the_first_message_is_empty(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    await say(client, session_id, "1")

    assert (await client.get(f"/sessions/{session_id}/messages?before=1")).json() == []


async def test_session_is_read_without_its_history(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    await say(client, session_id, "1")

    read = (await client.get(f"/sessions/{session_id}?messages=false")).json()

    assert read["messages"] is None
    assert read["last_seq"] == 2
    missing = await client.get(f"/sessions/{uuid4()}?messages=false")
    assert missing.status_code == 404

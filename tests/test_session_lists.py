"""Lists of sessions: by last activity, with first words, what a search found, and how many."""

import httpx2
import pytest

pytestmark = pytest.mark.anyio


async def open_session(client: httpx2.AsyncClient, agent_id: str, *lines: str, **body: str) -> str:
    messages = [{"role": "user", "content": line} for line in lines]
    made = await client.post("/sessions", json={"agent_id": agent_id, "messages": messages, **body})
    assert made.status_code == 201
    return made.json()["id"]


async def touch(client: httpx2.AsyncClient, session_id: str) -> None:
    sent = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
    assert sent.status_code == 200


async def test_sessions_are_listed_by_last_activity(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    made = [await open_session(client, agent_id) for _ in range(5)]
    for index in (3, 0):
        await touch(client, made[index])
    await client.patch(f"/sessions/{made[2]}", json={"title": "renamed"})

    seen: list[str] = []
    url: str | None = "/sessions?order=updated&limit=2"
    while url:
        response = await client.get(url)
        assert response.status_code == 200, response.text
        seen += [session["id"] for session in response.json()]
        url = response.links.get("next", {}).get("url")

    assert seen == [made[index] for index in (2, 0, 3, 4, 1)]


@pytest.mark.parametrize(
    "query",
    ["order=updated&cursor=AAAA", "order=updated&cursor=" + "_" * 32, "order=name", "preview=2"],
)
async def test_wrong_list_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    assert (await client.get(f"/sessions?{query}")).status_code == 422


async def test_list_has_first_words_only_where_they_are_wanted(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    await open_session(client, agent_id, "When does the\n museum  open? " + "x" * 500, "second")
    await open_session(client, agent_id)

    wanted = await client.get("/sessions?preview=true")
    unwanted = await client.get("/sessions")

    previews = [session["preview"] for session in wanted.json()]
    assert previews[0] is None
    assert previews[1].startswith("When does the museum open? xxx")
    assert len(previews[1]) <= 160
    assert [session["preview"] for session in unwanted.json()] == [None, None]
    assert wanted.headers["x-total-count"] == "2"
    assert "x-total-count" not in unwanted.headers


async def test_total_is_counted_beyond_the_page_and_of_the_filter(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    for number in range(5):
        await open_session(client, agent_id, "a lamp", user_id=f"user-{number % 2}")

    first = await client.get("/sessions?preview=true&limit=2")
    second = await client.get(first.links["next"]["url"])
    of_user = await client.get("/sessions?preview=true&limit=1&user_id=user-1&q=lamp")

    assert first.headers["x-total-count"] == "5"
    assert "x-total-count" not in second.headers
    assert of_user.headers["x-total-count"] == "2"


@pytest.mark.parametrize(
    ("words", "seq", "part"),
    [
        ("orchid", 2, "my orchid"),
        ("ORCHID pale", 2, "my orchid"),
        ("привет", 3, "привет"),
        ("100%", 4, "100% sure"),
        ("snake_case", 5, "a snake_case name"),
    ],
)
async def test_search_says_where_it_found_the_words(
    client: httpx2.AsyncClient, agent_id: str, words: str, seq: int, part: str
) -> None:
    lines = ["hello", "z " * 200 + "pale is my orchid " + "z " * 200, "скажи привет"]
    await open_session(client, agent_id, *lines, "I am 100% sure", "a snake_case name")

    (found,) = (await client.get("/sessions", params={"q": words, "preview": True})).json()

    assert found["match"]["seq"] == seq
    assert part in found["match"]["snippet"]
    assert len(found["match"]["snippet"]) <= 160


async def test_words_of_the_title_have_no_place_in_a_message(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    await open_session(client, agent_id, "hello", title="Orchids")

    (found,) = (await client.get("/sessions?q=orchids&preview=true")).json()

    assert found["match"] is None

"""Agents: versions, archive, and what is refused."""

import httpx2
import pytest

pytestmark = pytest.mark.anyio


async def test_agent_has_the_defaults_of_the_server_where_nothing_is_given(
    client: httpx2.AsyncClient,
) -> None:
    agent = (await client.post("/agents", json={"name": "  Ada  "})).json()

    assert agent["name"] == "Ada"
    assert agent["system_prompt"] == "You are a helpful assistant."
    assert agent["version"] == 1
    for field in ("model", "temperature", "max_output_tokens", "voice", "language"):
        assert agent[field] is None


async def test_each_change_makes_a_version_and_no_change_makes_none(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    await client.put(f"/agents/{agent_id}", json={"voice": "nova", "temperature": 0.5})
    await client.put(f"/agents/{agent_id}", json={"voice": "nova"})
    changed = await client.put(f"/agents/{agent_id}", json={"voice": None})

    assert changed.json()["version"] == 3
    assert changed.json()["voice"] is None
    versions = (await client.get(f"/agents/{agent_id}/versions")).json()
    assert [(v["version"], v["voice"], v["temperature"]) for v in versions] == [
        (3, None, 0.5),
        (2, "nova", 0.5),
        (1, None, None),
    ]


async def test_version_is_restored_as_a_new_one(client: httpx2.AsyncClient, agent_id: str) -> None:
    await client.put(f"/agents/{agent_id}", json={"name": "Grace"})

    restored = await client.post(f"/agents/{agent_id}/versions/1/restore")

    assert restored.json()["name"] == "Ada"
    assert restored.json()["version"] == 3
    unknown = await client.post(f"/agents/{agent_id}/versions/9/restore")
    assert unknown.status_code == 404
    assert unknown.json()["code"] == "version-not-found"


async def test_session_goes_on_with_the_newest_version(
    client: httpx2.AsyncClient, agent_id: str, session_id: str
) -> None:
    first = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
    await client.put(f"/agents/{agent_id}", json={"system_prompt": "Be kind."})
    second = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    turns = [(await client.get(f"/turns/{r.json()['turn_id']}")).json() for r in (first, second)]
    assert [turn["agent_version"] for turn in turns] == [1, 2]


async def test_archived_agent_is_kept_but_takes_nothing_new(
    client: httpx2.AsyncClient, agent_id: str, session_id: str
) -> None:
    archived = await client.delete(f"/agents/{agent_id}")

    assert archived.status_code == 204
    assert (await client.delete(f"/agents/{agent_id}")).status_code == 204
    assert (await client.get("/agents")).json() == []
    assert [a["id"] for a in (await client.get("/agents?archived=true")).json()] == [agent_id]
    assert (await client.get(f"/agents/{agent_id}")).json()["archived_at"] is not None
    for response in (
        await client.post("/sessions", json={"agent_id": agent_id}),
        await client.put(f"/agents/{agent_id}", json={"name": "Grace"}),
        await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"}),
    ):
        assert response.status_code == 409
        assert response.json()["code"] == "agent-archived"


async def test_agents_come_in_pages_and_none_is_lost_or_repeated(
    client: httpx2.AsyncClient,
) -> None:
    made = [
        (await client.post("/agents", json={"name": f"agent {n}"})).json()["id"] for n in range(7)
    ]

    seen: list[str] = []
    url: str | None = "/agents?limit=3"
    while url:
        response = await client.get(url)
        seen += [agent["id"] for agent in response.json()]
        await client.post("/agents", json={"name": "made meanwhile"})
        url = response.links.get("next", {}).get("url")

    assert seen == made[::-1]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "   "},
        {"name": None},
        {"name": "x" * 201},
        {"name": "Ada", "promtp": "?"},
        {"name": "Ada", "temperature": 3},
        {"name": "Ada", "temperature": "hot"},
        {"name": "Ada", "max_output_tokens": 0},
        {"name": "Ada", "max_output_tokens": 10**30},
        {"name": "Ada", "language": "English, please"},
        {"name": "Ada", "voice": ""},
        {"name": "A\x00da"},
        [],
        "Ada",
    ],
)
async def test_wrong_agent_is_refused(client: httpx2.AsyncClient, body: object) -> None:
    response = await client.post("/agents", json=body)

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "request-invalid"


@pytest.mark.parametrize("cursor", ["x", "AAAA", "é", "=" * 22, "A" * 21])
async def test_wrong_cursor_is_refused(client: httpx2.AsyncClient, cursor: str) -> None:
    response = await client.get("/agents", params={"cursor": cursor})

    assert response.status_code == 422
    assert response.json()["code"] == "cursor-invalid"

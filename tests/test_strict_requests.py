"""Unknown names are refused, with the name that was likely meant, on every endpoint."""

import json
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.identity.test_matrix import ROWS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", [name for name in ROWS if name != "GET /metrics"])
async def test_unknown_query_parameter_is_refused_on_every_endpoint(
    client: httpx2.AsyncClient, name: str
) -> None:
    method, _, path = name.partition(" ")
    names = (
        "agent_id", "session_id", "turn_id", "tool_id", "call_id", "file_id", "server_id", "model",
        "agent", "chat_id",
        "response_id", "conversation_id", "item_id",
    )  # fmt: skip
    ids = dict.fromkeys(names, str(uuid4())) | {"name": "SHOP_KEY"}
    filled = path.format(**ids, version=1, key_id="abcdefgh", user_id="x", message_id=uuid4())
    row = ROWS[name]
    body: dict[str, Any] = {} if row.form else {"json": row.json or {}}
    if method in {"GET", "DELETE"}:
        body = {}

    response = await client.request(method, f"{filled}?unknown_name=1", **body)

    if path.startswith("/v1/"):
        assert response.status_code == 400, response.text
        assert "unknown_name" in response.json()["error"]["message"]
        return
    assert response.status_code == 422, response.text
    if path.startswith("/api/chat"):
        assert "unknown_name" in response.text
        return
    assert response.json()["code"] == "request-invalid"
    assert "unknown_name" in response.json()["detail"]


async def test_scraper_may_add_parameters_of_its_own(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/metrics?collect[]=turns")).status_code == 200


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/sessions?agentid=1", "agent_id"),
        ("/sessions?userid=1", "user_id"),
        ("/sessions?search=x", "q"),
        ("/sessions?offset=5", "cursor"),
        ("/agents?Limit=5", "limit"),
        ("/usage?groupby=day", "group_by"),
        ("/usage?since=2026-01-01", "from"),
    ],
)
async def test_unknown_parameter_is_told_what_was_meant(
    client: httpx2.AsyncClient, path: str, meant: str
) -> None:
    detail = (await client.get(path)).json()["detail"]

    assert f"`{meant}`" in detail


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/agents", {"name": "A", "instructions": "x"}, ["instructions", "system_prompt"]),
        ("/agents", {"name": "A", "max_tokens": 5}, ["max_output_tokens"]),
        ("/agents", {"name": "A", "temprature": 1}, ["temperature"]),
        ("/agents", {}, ["name", "missing"]),
        ("/agents", {"name": "A", "language": "english"}, ["`en`"]),
        ("/agents", {"name": "A", "language": "Deutsch"}, ["`de`"]),
        ("/agents", {"name": "A", "language": "pt_br"}, ["`pt-BR`"]),
        ("/agents", {"name": "A", "language": "EN"}, ["`en`"]),
        ("/agents", {"name": "A", "language": "klingonish"}, ["ISO 639-1"]),
        ("/messages/text", {"session_id": str(uuid4()), "content": "x", "stream": True},
         ["stream", "Accept: text/event-stream"]),
        ("/messages/text", {"session_id": str(uuid4()), "message": "x"}, ["content"]),
        ("/messages/text", {"thread_id": str(uuid4()), "content": "x"}, ["session_id"]),
        ("/keys", {"name": "k", "scopes": ["agents:read"], "usd_per_dy": 1}, ["usd_per_day"]),
        ("/sessions", {"agent_id": str(uuid4()), "user": "x"}, ["user_id"]),
        ("/messages/text", {"sessionId": str(uuid4()), "content": "x"},
         ["did you mean `session_id`"]),
        ("/messages/text", [], ["must be a JSON object"]),
        ("/messages/text", {"session_id": None, "content": "x"}, ["must be a UUID, as text"]),
        ("/messages/text", {"session_id": str(uuid4()), "content": "\u200b \ufeff"}, ["blank"]),
        ("/sessions", {"agent_id": str(uuid4()), "metadata": []}, ["must be a JSON object"]),
    ],
)  # fmt: skip
async def test_error_of_a_body_is_told_in_words(
    client: httpx2.AsyncClient, path: str, body: object, words: list[str]
) -> None:
    response = await client.post(path, json=body)

    assert response.status_code == 422
    for word in words:
        assert word in response.json()["detail"] + json.dumps(response.json()["errors"])
    assert words[0] in response.json()["detail"]
    assert "^" not in response.text
    assert "pattern" not in response.text


@pytest.mark.parametrize("query", ["limit=1&limit=2", "q=a&limit=1&q=b"])
async def test_parameter_that_is_there_twice_is_refused(
    client: httpx2.AsyncClient, query: str
) -> None:
    response = await client.get(f"/sessions?{query}")

    assert response.status_code == 422
    assert "is there more than once" in response.json()["detail"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([("sessionid", (None, "x"))], "did you mean `session_id`"),
        ([("stream", (None, "true"))], "is not known here"),
        ([("output", (None, "text")), ("output", (None, "voice"))], "is there more than once"),
        ([("audio", ("b.wav", b"RIFF"))], "is there more than once"),
    ],
)
async def test_part_of_a_form_that_is_unknown_or_there_twice_is_refused(
    client: httpx2.AsyncClient, session_id: str, speech: bytes, more: list[Any], words: str
) -> None:
    parts = [("session_id", (None, session_id)), ("audio", ("a.wav", speech)), *more]

    response = await client.post("/messages/voice", files=parts)

    assert response.status_code == 422, response.text
    assert words in response.json()["detail"]


async def test_form_that_ends_in_the_middle_of_a_file_is_said_to(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    request = client.build_request(
        "POST", "/messages/voice", data={"session_id": session_id}, files={"audio": speech}
    )
    body = request.read()[:-100]

    response = await client.post(
        "/messages/voice", content=body, headers={"content-type": request.headers["content-type"]}
    )

    assert response.status_code == 400
    assert response.json()["detail"] == "The body ends in the middle of a file."


async def test_key_id_of_the_wrong_form_shows_no_pattern(client: httpx2.AsyncClient) -> None:
    response = await client.get("/keys/not-a-key")

    assert response.status_code == 422
    assert "^" not in response.text


@pytest.mark.parametrize("depth", [101, 254, 255, 256, 1000])
@pytest.mark.parametrize("opening", ['{"a":', "["])
async def test_deep_metadata_is_refused(
    client: httpx2.AsyncClient, agent_id: str, session_id: str, depth: int, opening: str
) -> None:
    closing = "}" if opening.startswith("{") else "]"
    deep = f'{{"m": {opening * (depth - 1)}1{closing * (depth - 1)}}}'
    headers = {"Content-Type": "application/json"}
    body = f'{{"agent_id": "{agent_id}", "metadata": {deep}}}'

    made = await client.post("/sessions", content=body, headers=headers)
    changed = await client.patch(
        f"/sessions/{session_id}", content=f'{{"metadata": {deep}}}', headers=headers
    )

    assert made.status_code == changed.status_code == 422
    assert "100 levels" in made.text


async def test_metadata_of_the_largest_depth_is_read_everywhere(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    deep: Any = 1
    for _ in range(99):
        deep = {"a": deep}
    made = await client.post("/sessions", json={"agent_id": agent_id, "metadata": {"m": deep}})

    path = f"/sessions/{made.json()['id']}"
    for read in ("/sessions", path, f"{path}/export"):
        assert (await client.get(read)).status_code == 200
    fork = await client.post(f"{path}/fork", json={})
    assert fork.json()["metadata"] == {"m": deep}


async def test_sessions_are_filtered_by_metadata_and_time(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    metadata: list[dict[str, Any]] = [
        {"plan": "pro", "seats": 3},
        {"plan": "pro", "seats": 4, "trial": True},
        {"plan": None, 'odd "name".x': "1", "nested": {"plan": "pro"}},
        {"plan": "free", "trial": 1},
    ]
    made = [
        (await client.post("/sessions", json={"agent_id": agent_id, "metadata": each})).json()
        for each in metadata
    ]

    async def found(**params: str) -> list[int]:
        response = await client.get("/sessions", params=params)
        assert response.status_code == 200, response.text
        ids = {session["id"] for session in response.json()}
        return [number for number, session in enumerate(made) if session["id"] in ids]

    assert await found(metadata='{"plan": "pro"}') == [0, 1]
    assert await found(metadata='{"plan": "pro", "seats": 4.0}') == [1]
    assert await found(metadata='{"trial": true}') == [1]
    assert await found(metadata='{"trial": 1}') == [3]
    assert await found(metadata='{"plan": null}') == [2]
    assert await found(metadata=json.dumps({'odd "name".x': "1"})) == [2]
    assert await found(metadata="{}") == [0, 1, 2, 3]
    await client.patch(f"/sessions/{made[1]['id']}", json={"title": "x"})
    assert await found(updated_after=made[3]["updated_at"]) == [1]
    local = made[3]["updated_at"].replace("Z", "+00:00")
    assert await found(updated_after=local, metadata='{"plan": "free"}') == []


@pytest.mark.parametrize(
    "params",
    [
        {"updated_after": "yesterday"},
        {"updated_after": "2026-01-01T00:00:00"},
        {"updated_after": "0001-01-01T00:00:00+14:00"},
        {"updated_after": "9999-12-31T23:59:59-14:00"},
        {"metadata": "[]"},
        {"metadata": "plan"},
        {"metadata": '{"a": {"b": 1}}'},
        {"metadata": '{"a": "\\u0000"}'},
    ],
)
async def test_wrong_filter_is_refused(client: httpx2.AsyncClient, params: dict[str, str]) -> None:
    assert (await client.get("/sessions", params=params)).status_code == 422

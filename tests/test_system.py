"""`/me`, `/system`, versions in `If-Match`, and compressed answers."""

import gzip

import httpx2
import pytest

from app import __version__
from app.core.database.revision import REVISION

pytestmark = pytest.mark.anyio


async def test_caller_of_the_own_machine_is_the_admin(client: httpx2.AsyncClient) -> None:
    me = (await client.get("/me")).json()

    assert (me["kind"], me["key_id"], me["has_credential"]) == ("admin", None, False)
    assert {"agents:write", "keys:write"} <= set(me["scopes"])


async def test_system_tells_version_database_and_providers(client: httpx2.AsyncClient) -> None:
    system = (await client.get("/system")).json()

    assert system["version"] == __version__
    assert system["database"]["revision"] == REVISION
    assert system["database"]["kind"] in {"sqlite", "postgresql"}
    providers = {each["capability"]: each for each in system["providers"]}
    assert sorted(providers) == ["chat", "stt", "tts"]
    assert all(each["is_failing"] is False for each in providers.values())
    assert system["limits"]["upload_bytes"] == 25 * 1024 * 1024


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_two_editors_do_not_overwrite_each_other(
    client: httpx2.AsyncClient, agent_id: str, method: str
) -> None:
    async def change(name: str, version: str) -> httpx2.Response:
        headers = {"If-Match": version}
        return await client.request(
            method, f"/agents/{agent_id}", json={"name": name}, headers=headers
        )

    first, second = await change("Eve", '"1"'), await change("Bob", '"1"')

    assert first.json()["version"] == 2
    assert (second.status_code, second.json()["code"]) == (412, "version-changed")
    assert (await client.get(f"/agents/{agent_id}")).json()["name"] == "Eve"
    assert (await change("Bob", '"2"')).json()["version"] == 3
    assert (await change("Ann", "*")).json()["version"] == 4


@pytest.mark.parametrize("version", ["3", '"x"', '"0"', 'W/"1"', '"12345678901"'])
async def test_wrong_version_is_refused(
    client: httpx2.AsyncClient, agent_id: str, version: str
) -> None:
    headers = {"If-Match": version}
    response = await client.put(f"/agents/{agent_id}", json={"name": "x"}, headers=headers)

    assert response.status_code == 422


async def raw(client: httpx2.AsyncClient, path: str, coding: str) -> tuple[httpx2.Headers, bytes]:
    async with client.stream("GET", path, headers={"Accept-Encoding": coding}) as response:
        body = b"".join([piece async for piece in response.aiter_raw()])
    return response.headers, body


async def test_large_json_is_compressed_where_the_client_takes_it(
    client: httpx2.AsyncClient,
) -> None:
    await client.post("/agents", json={"name": "Ada", "system_prompt": "Be brief. " * 500})

    headers, small = await raw(client, "/agents", "gzip, br")
    plain_headers, plain = await raw(client, "/agents", "identity")

    assert headers["content-encoding"] == "gzip"
    assert int(headers["content-length"]) == len(small) < len(plain) / 10
    assert gzip.decompress(small) == plain
    assert "content-encoding" not in plain_headers
    assert headers["vary"] == plain_headers["vary"] == "Accept-Encoding"


async def test_small_json_and_events_are_not_compressed(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    body = {"session_id": session_id, "content": "Hi"}
    sent = await client.post("/messages/text", json=body)
    headers, _ = await raw(client, "/me", "gzip")
    stream_headers, stream = await raw(client, f"/turns/{sent.json()['turn_id']}/events", "gzip")

    assert "content-encoding" not in headers
    assert "content-encoding" not in stream_headers
    assert b"event: turn.completed" in stream


async def test_expired_cookie_does_not_lock_out_the_own_machine(
    client: httpx2.AsyncClient,
) -> None:
    own = {"Sec-Fetch-Site": "same-origin"}
    made = await client.post("/console/session")
    assert made.status_code == 204, made.text
    cookie = {"Cookie": made.headers["set-cookie"].partition(";")[0]}
    await client.delete("/console/session", headers=cookie | own)
    wrong = {"Cookie": cookie["Cookie"][:-2] + "xx"}

    for headers in (cookie, wrong, {"Cookie": "agent_platform_console=x; a"}):
        assert (await client.get("/agents", headers=headers | own)).status_code == 200

"""What browsers may do: named sites only, and nothing by DNS rebinding or a proxy's word."""

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import httpx2
import pytest
from pydantic import ValidationError

from app.core.config import Settings
from app.state import State
from tests.identity.world import ADMIN, World
from tests.support.application import IsolatedSettings, client_of

pytestmark = pytest.mark.anyio

SITE = "https://app.example"
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def with_site(identity_settings: Settings, state: State) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server whose CORS_ORIGINS names one site."""
    named = identity_settings.model_copy(update={"cors_origins": f"{SITE}/, http://localhost:3000"})
    async with client_of(named, state, peer="192.0.2.1", base_url="http://api.example") as client:
        yield client


def preflight(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }


async def test_without_named_sites_no_page_may_read_anything(client: httpx2.AsyncClient) -> None:
    asked = await client.options("/agents", headers=preflight(SITE))
    read = await client.get("/agents", headers=ADMIN | {"Origin": SITE})

    assert asked.status_code == HTTPStatus.UNAUTHORIZED
    for response in (asked, read):
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_named_site_is_answered_also_when_it_is_refused(
    with_site: httpx2.AsyncClient,
) -> None:
    asked = await with_site.options("/messages/text", headers=preflight(SITE))
    read = await with_site.get("/agents", headers=ADMIN | {"Origin": SITE})
    refused = await with_site.get("/agents", headers={"Origin": SITE})

    assert asked.status_code == HTTPStatus.OK
    assert read.status_code == HTTPStatus.OK
    assert refused.status_code == HTTPStatus.UNAUTHORIZED
    for response in (asked, read, refused):
        assert response.headers["access-control-allow-origin"] == SITE
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["request-id"]
    assert "Request-Id" in read.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://app.example.evil.example", "null", "http://app.example"],
)
async def test_other_site_is_not_answered(with_site: httpx2.AsyncClient, origin: str) -> None:
    asked = await with_site.options("/agents", headers=preflight(origin))
    read = await with_site.get("/agents", headers=ADMIN | {"Origin": origin})

    assert asked.status_code == HTTPStatus.BAD_REQUEST
    for response in (asked, read):
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("origins", ["*", "app.example", "https://a.example/path", "https://*.x.y"])
def test_sites_must_be_named_one_by_one(origins: str) -> None:
    with pytest.raises(ValidationError, match="CORS_ORIGINS"):
        IsolatedSettings(cors_origins=origins)


@pytest.mark.parametrize(
    "path",
    [
        "/agents",
        "/health",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/nowhere",
        "/assets/swagger-ui.css",
    ],
)
@pytest.mark.parametrize("headers", [ADMIN, {}])
async def test_every_response_has_the_headers_that_browsers_heed(
    client: httpx2.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    response = await client.get(path, headers=headers)

    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert response.headers["request-id"]
    assert "cache-control" in response.headers


async def test_page_of_a_rebound_name_is_refused_with_or_without_a_named_site(
    identity_settings: Settings, state: State
) -> None:
    async with client_of(identity_settings, state, base_url="http://evil.example") as client:
        for headers in ({}, {"Origin": "http://evil.example"}, {"Host": "evil.example:8000"}):
            response = await client.get("/agents", headers=headers)
            assert response.status_code == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "localhost"},
        {"Forwarded": "for=127.0.0.1;host=localhost"},
        {"X-Real-IP": "127.0.0.1"},
    ],
    ids=str,
)
async def test_local_request_that_comes_from_elsewhere_is_refused(
    identity_settings: Settings, state: State, headers: dict[str, str]
) -> None:
    async with client_of(identity_settings, state, base_url="http://localhost:8000") as client:
        assert (await client.get("/agents")).status_code == HTTPStatus.OK
        response = await client.get("/agents", headers=headers)

    assert response.status_code == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP"])
async def test_foreign_peer_cannot_call_itself_local(
    client: httpx2.AsyncClient, header: str
) -> None:
    response = await client.get("/agents", headers={header: "127.0.0.1", "Host": "localhost"})

    assert response.status_code == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("token", ["ap_12345678_short", "a.b.c", "st_nothing"])
async def test_wrong_key_is_refused_also_on_the_own_machine(
    identity_settings: Settings, state: State, token: str
) -> None:
    async with client_of(identity_settings, state, base_url="http://localhost:8000") as client:
        refused = await client.get("/agents", headers={"Authorization": f"Bearer {token}"})
        placeholder = await client.get("/agents", headers={"Authorization": "Bearer unused"})

    assert refused.status_code == HTTPStatus.UNAUTHORIZED
    assert placeholder.status_code == HTTPStatus.OK


async def test_audio_element_has_its_session_token_in_the_url(world: World, speech: bytes) -> None:
    things, others = await world.things(), await world.things()
    spoken = await world.client.post(
        "/messages/voice",
        data={"session_id": things.session_id},
        files={"audio": ("x.wav", speech)},
        headers=ADMIN,
    )
    path = f"/turns/{spoken.headers['x-turn-id']}/audio"

    async def status(path: str, bearer: dict[str, str]) -> int:
        token = bearer["Authorization"].removeprefix("Bearer ")
        return (await world.client.get(path, params={"token": token})).status_code

    token = await world.token(things.session_id)
    assert await status(path, token) == HTTPStatus.OK
    assert await status(path, await world.token(others.session_id)) == HTTPStatus.NOT_FOUND
    assert await status(path, ADMIN) == HTTPStatus.UNAUTHORIZED
    assert await status(path, world.callers["key"]) == HTTPStatus.UNAUTHORIZED
    assert await status(f"/sessions/{things.session_id}", token) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("header", ["cache-control", "x-workspace-id", "last-event-id", "x-custom"])
async def test_every_header_may_be_sent_from_a_named_site(
    with_site: httpx2.AsyncClient, header: str
) -> None:
    asked = {**preflight(SITE), "Access-Control-Request-Headers": header}
    named = await with_site.options("/agents", headers=asked)
    other = await with_site.options("/agents", headers=asked | {"Origin": "https://evil.example"})

    assert named.status_code == HTTPStatus.OK
    assert header in named.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in other.headers


async def test_every_documented_header_may_be_read_from_a_named_site(
    with_site: httpx2.AsyncClient,
) -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = re.compile(r"`(X-(?:RateLimit|Turn|Session|Transcription)[A-Za-z-]*[a-z])`")
    documented = {name for path in documents for name in named.findall(path.read_text())}
    response = await with_site.get("/agents", headers=ADMIN | {"Origin": SITE})

    exposed = response.headers["access-control-expose-headers"].lower().split(", ")
    sent_by_us = {name for name in response.headers if name.startswith("x-ratelimit")}
    assert documented
    assert {name.lower() for name in documented} | sent_by_us <= set(exposed)


async def test_only_audio_that_a_token_opens_may_be_played_by_other_sites(
    settings: Settings, state: State, speech: bytes
) -> None:
    async with client_of(settings, state) as client:
        await play_from_another_site(client, speech)


async def play_from_another_site(client: httpx2.AsyncClient, speech: bytes) -> None:
    agent = await client.post("/agents", json={"name": "Ada", "system_prompt": ""}, headers=ADMIN)
    opened = await client.post("/sessions", json={"agent_id": agent.json()["id"]}, headers=ADMIN)
    session_id = opened.json()["id"]
    form = {"session_id": session_id}
    spoken = await client.post(
        "/messages/voice", data=form, files={"audio": ("x.wav", speech)}, headers=ADMIN
    )
    made = await client.post(f"/sessions/{session_id}/tokens", json={}, headers=ADMIN)
    token = made.json()["token"]
    url = f"/turns/{spoken.headers['x-turn-id']}/audio"

    opened = await client.get(url, params={"token": token})
    own = await client.get(url, headers=ADMIN)

    policy = "cross-origin-resource-policy"
    assert opened.content == own.content == spoken.content
    assert opened.headers.get_list(policy) == ["cross-origin"]
    assert own.headers.get_list(policy) == ["same-origin"]

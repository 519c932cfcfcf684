"""The console's sign-in: a cookie with the rights of a key, for the server's own pages alone."""

from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie

import httpx2
import pytest
from sqlalchemy import func, select, update

from app.models import ConsoleSession
from app.services.identity.console_sessions import LIFE
from tests.identity.world import ADMIN, World, bearer

pytestmark = pytest.mark.anyio

OWN = {"Sec-Fetch-Site": "same-origin"}


def cookie_of(response: httpx2.Response) -> dict[str, str]:
    (pair, *_) = response.headers["set-cookie"].split(";")
    return {"Cookie": pair}


async def sign_in(world: World, headers: dict[str, str]) -> dict[str, str]:
    response = await world.client.post("/console/session", headers=headers)
    assert response.status_code == 204, response.text
    return cookie_of(response)


async def status(world: World, path: str, headers: dict[str, str], method: str = "GET") -> int:
    body = {"name": "Ada"} if method == "POST" else None
    return (await world.client.request(method, path, headers=headers, json=body)).status_code


async def test_cookie_has_the_rights_of_its_key(world: World) -> None:
    cookie = await sign_in(world, world.callers["read-only"])

    me = (await world.client.get("/me", headers=cookie | OWN)).json()

    assert me["kind"] == "key"
    assert me["key_name"] == "k"
    assert "agents:write" not in me["scopes"]
    assert await status(world, "/agents", cookie | OWN) == 200
    assert await status(world, "/agents", cookie | OWN, "POST") == 403


async def test_cookie_of_the_admin_key_is_the_admin(world: World) -> None:
    cookie = await sign_in(world, ADMIN)

    assert (await world.client.get("/me", headers=cookie | OWN)).json()["kind"] == "admin"
    assert await status(world, "/workspaces", cookie | OWN) == 200
    of_other = cookie | OWN | {"X-Workspace-Id": world.other_workspace_id}
    assert await status(world, "/agents", of_other) == 200


async def test_cookie_cannot_be_read_by_scripts_or_sent_by_other_sites(world: World) -> None:
    response = await world.client.post("/console/session", headers=ADMIN)
    encrypted = await world.client.post(
        "/console/session", headers=ADMIN | {"X-Forwarded-Proto": "https"}
    )

    (morsel,) = SimpleCookie(response.headers["set-cookie"]).values()
    assert (morsel["httponly"], morsel["samesite"], morsel["path"]) == (True, "strict", "/")
    assert int(morsel["max-age"]) == LIFE.total_seconds()
    assert not morsel["secure"]
    assert "Secure" in encrypted.headers["set-cookie"]


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("GET", {}, 200),
        ("GET", {"Sec-Fetch-Site": "none"}, 200),
        ("GET", {"Sec-Fetch-Site": "same-site"}, 401),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 401),
        ("POST", {"Sec-Fetch-Site": "same-origin"}, 201),
        ("POST", {"Sec-Fetch-Site": "none"}, 401),
        ("POST", {"Sec-Fetch-Site": "same-site"}, 401),
        ("POST", {"Sec-Fetch-Site": "cross-site"}, 401),
        ("POST", {}, 401),
        ("POST", {"Origin": "http://api.example"}, 201),
        ("POST", {"Origin": "http://api.example:81"}, 401),
        ("POST", {"Origin": "http://evil.example"}, 401),
        ("POST", {"Origin": "null"}, 401),
    ],
)
async def test_cookie_counts_for_own_pages_only(
    world: World, method: str, headers: dict[str, str], expected: int
) -> None:
    cookie = await sign_in(world, ADMIN)

    assert await status(world, "/agents", cookie | headers, method) == expected


async def test_signing_out_ends_the_session_and_no_other(world: World) -> None:
    first, second = [await sign_in(world, ADMIN) for _ in range(2)]

    out = await world.client.delete("/console/session", headers=first | OWN)

    assert out.status_code == 204
    assert 'agent_platform_console=""' in out.headers["set-cookie"]
    assert await status(world, "/agents", second | OWN) == 200
    async with world.database.reading() as db:
        assert await db.scalar(select(func.count()).select_from(ConsoleSession)) == 1


@pytest.mark.parametrize("change", ["revoked", "rotated", "expired"])
async def test_session_ends_with_its_key_or_its_time(world: World, change: str) -> None:
    made = await world.key()
    cookie = await sign_in(world, bearer(made["key"]))
    if change == "revoked":
        await world.client.delete(f"/keys/{made['id']}", headers=ADMIN)
    elif change == "rotated":
        body = {"grace_seconds": 0}
        await world.client.post(f"/keys/{made['id']}/rotate", headers=ADMIN, json=body)
    else:
        async with world.database.transaction() as db:
            past = datetime.now(UTC) - timedelta(seconds=1)
            await db.execute(update(ConsoleSession).values(expires_at=past))

    assert await status(world, "/agents", cookie | OWN) == 401


@pytest.mark.parametrize("kind", ["user", "token of another session", "none", "revoked", "unknown"])
async def test_only_keys_sign_in(world: World, kind: str) -> None:
    response = await world.client.post("/console/session", headers=world.callers[kind])

    assert response.status_code in {401, 403}
    assert "set-cookie" not in response.headers


async def test_cookie_is_no_bearer_and_signs_nobody_in(world: World) -> None:
    cookie = await sign_in(world, ADMIN)
    secret = cookie["Cookie"].partition("=")[2]

    again = await world.client.post("/console/session", headers=cookie | OWN)

    assert await status(world, "/agents", bearer(secret)) == 401
    assert again.status_code == 403
    assert await status(world, "/agents", cookie | OWN | bearer("ap_wrong")) == 401

"""Keys: their form, their life, and what one may do to another."""

import json
import re
import time
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import anyio
import httpx2
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from app.core.config import Settings
from app.core.database import Database
from app.services.identity.credentials import CredentialKind, new_credential, parse
from app.state import Providers, State, build_state
from tests.identity.world import ADMIN, World, bearer
from tests.support.application import client_of
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def test_key_has_the_form_that_scanners_know() -> None:
    credential = new_credential(CredentialKind.KEY)

    assert re.fullmatch(r"ap_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}", credential.text)
    assert credential.text.split("_")[1] == credential.id
    presented = parse(credential.text.encode())
    assert presented is not None
    assert (presented.id, presented.digest) == (credential.id, credential.digest)
    assert credential.text not in repr(credential)


def test_one_wrong_character_is_noticed_without_looking_it_up() -> None:
    good = new_credential(CredentialKind.KEY).text
    for place in range(len(good)):
        wrong = good[:place] + ("x" if good[place] != "x" else "y") + good[place + 1 :]
        assert parse(wrong.encode()) is None
    assert parse(b"") is None
    assert parse(good.encode() + b"\n") is None


async def who(world: World, key: str) -> int:
    return (await world.client.get("/agents", headers=bearer(key))).status_code


async def test_key_is_shown_once_and_not_stored(world: World, database: Database) -> None:
    made = await world.key("agents:read")
    schema = "" if database.is_sqlite else "agent_platform."

    shown = await world.client.get(f"/keys/{made['id']}", headers=ADMIN)
    listed = await world.client.get("/keys", headers=ADMIN)
    audited = await world.client.get("/audit", headers=ADMIN)
    async with database.reading() as db:
        stored = repr((await db.execute(text(f"SELECT * FROM {schema}api_keys"))).all())  # noqa: S608

    secret = made["key"].split("_")[2]
    for place in (shown.text, listed.text, audited.text, stored):
        assert secret not in place
    assert made["id"] in shown.text
    assert made["id"] in listed.text


async def test_revoked_key_is_refused_within_a_second_on_every_server(
    world: World, identity_settings: Settings, providers: Providers, state: State
) -> None:
    key = (await world.key("agents:read", "keys:write"))["key"]
    elsewhere = Database.from_settings(identity_settings)
    async with (
        build_state(identity_settings, elsewhere, providers) as other_state,
        client_of(identity_settings, other_state, peer="192.0.2.1") as other,
    ):
        assert (await other.get("/agents", headers=bearer(key))).status_code == HTTPStatus.OK
        assert await who(world, key) == HTTPStatus.OK

        await world.client.delete(f"/keys/{key.split('_')[1]}", headers=ADMIN)
        revoked_at = time.monotonic()
        for client in (world.client, other):

            async def is_refused(client: httpx2.AsyncClient = client) -> bool:
                asked_at = time.monotonic()
                answer = await client.get("/agents", headers=bearer(key))
                assert answer.is_client_error or asked_at - revoked_at < 1
                return answer.is_client_error

            await until(is_refused)
    await elsewhere.dispose()
    assert state["authenticator"].callers is not other_state["authenticator"].callers


async def test_hot_key_is_looked_up_at_most_twice_a_second(world: World, state: State) -> None:
    key = (await world.key("agents:read"))["key"]
    presented = parse(key.encode())
    assert presented is not None
    looked_up: list[str] = []
    engine = state["database"].engine.sync_engine

    def remember(_connection: object, _cursor: object, sql: str, *_rest: object) -> None:
        looked_up.append(sql)

    event.listen(engine, "before_cursor_execute", remember)

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for _ in range(200):
            group.start_soon(state["authenticator"].callers.of, presented)

    keys = [sql for sql in looked_up if "api_keys" in sql]
    assert 1 <= len(keys) <= 1 + int((time.monotonic() - began) / 0.5)


async def test_rotated_key_has_two_live_secrets_for_a_while(world: World) -> None:
    made = await world.key("agents:read")
    path = f"/keys/{made['id']}/rotate"

    rotated = await world.client.post(path, json={"grace_seconds": 600}, headers=ADMIN)
    second = rotated.json()["key"]
    await anyio.sleep(0.6)  # longer than an answer about a key is kept
    assert rotated.json()["id"] == made["id"]
    assert second != made["key"]
    assert await who(world, made["key"]) == await who(world, second) == HTTPStatus.OK

    third = (await world.client.post(path, json={"grace_seconds": 0}, headers=ADMIN)).json()["key"]
    for ended in (made["key"], second):

        async def is_refused(ended: str = ended) -> bool:
            return await who(world, ended) == HTTPStatus.UNAUTHORIZED

        await until(is_refused)
    assert await who(world, third) == HTTPStatus.OK


async def test_revoked_key_cannot_be_rotated_back_to_life(world: World) -> None:
    made = await world.key("agents:read")
    await world.client.delete(f"/keys/{made['id']}", headers=ADMIN)

    rotated = await world.client.post(f"/keys/{made['id']}/rotate", json={}, headers=ADMIN)
    again = await world.client.delete(f"/keys/{made['id']}", headers=ADMIN)

    assert rotated.status_code == HTTPStatus.CONFLICT
    assert rotated.json()["code"] == "key-revoked"
    assert again.status_code == HTTPStatus.NO_CONTENT


async def test_token_ends_with_the_key_that_made_it(world: World) -> None:
    key = await world.key()
    things = await world.things(bearer(key["key"]))
    token = await world.token(things.session_id, bearer(key["key"]))
    path = f"/sessions/{things.session_id}"
    assert (await world.client.get(path, headers=token)).status_code == HTTPStatus.OK

    await world.client.delete(f"/keys/{key['id']}", headers=ADMIN)

    async def is_refused() -> bool:
        answer = await world.client.get(path, headers=token)
        return answer.status_code == HTTPStatus.UNAUTHORIZED

    await until(is_refused)


async def test_nobody_gives_more_than_they_have(world: World) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    later = (soon + timedelta(hours=1)).isoformat()
    small = await world.key("keys:write", "agents:read", expires_at=soon.isoformat(), usd_per_day=5)
    headers = bearer(small["key"])

    async def ask(**body: object) -> httpx2.Response:
        wanted = {"name": "k", "scopes": ["agents:read"]} | body
        return await world.client.post("/keys", json=wanted, headers=headers)

    inherited = (await ask()).json()
    assert inherited["expires_at"] == small["expires_at"]
    assert inherited["usd_per_day"] == 5
    assert inherited["created_by"] == f"key:{small['id']}"
    for more in (
        {"scopes": ["agents:write"]},
        {"scopes": ["agents:read", "sessions:read"]},
        {"expires_at": later},
        {"usd_per_day": 6},
    ):
        refused = await ask(**more)
        assert refused.status_code == HTTPStatus.FORBIDDEN, more
        assert refused.json()["code"] == "cannot-grant"
    full = await world.key()
    stolen = await world.client.post(f"/keys/{full['id']}/rotate", json={}, headers=headers)
    assert stolen.status_code == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "body",
    [
        {"name": "k"},
        {"name": "k", "scopes": []},
        {"name": "k", "scopes": ["agents:*"]},
        {"name": "k", "scopes": ["agents:read"], "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "k", "scopes": ["agents:read"], "expires_at": "2090-01-01T00:00:00"},
        {"name": "k", "scopes": ["agents:read"], "expires_at": "9999-12-31T23:59:59-23:59"},
        {"name": "k", "scopes": ["agents:read"], "requests_per_minute": -1},
        {"name": "k", "scopes": ["agents:read"], "usd_per_day": "many"},
        {"name": "\u0000", "scopes": ["agents:read"]},
    ],
)
async def test_wrong_wish_is_refused(world: World, body: dict[str, object]) -> None:
    response = await world.client.post("/keys", json=body, headers=ADMIN)

    assert response.status_code == HTTPStatus.UNPROCESSABLE_ENTITY


async def test_keys_are_listed_in_pages(world: World) -> None:
    made = {(await world.key("agents:read"))["id"] for _ in range(5)}

    listed: list[str] = []
    path = "/keys?limit=2"
    while path:
        page = await world.client.get(path, headers=ADMIN)
        listed += [key["id"] for key in page.json()]
        path = page.links.get("next", {}).get("url", "")

    assert listed == sorted(listed)
    assert made <= set(listed)
    wrong = await world.client.get("/keys?cursor=!!", headers=ADMIN)
    assert wrong.status_code == HTTPStatus.UNPROCESSABLE_ENTITY


async def test_audit_log_tells_who_did_what_and_never_what_was_said(world: World) -> None:
    things = await world.things()
    await world.client.get(f"/sessions/{things.session_id}/export", headers=world.callers["user"])
    await world.client.delete(f"/sessions/{things.session_id}", headers=world.callers["key"])

    entries = (await world.client.get("/audit", headers=ADMIN)).json()

    told = [(entry["action"], entry["target_id"]) for entry in entries]
    assert ("session.exported", things.session_id) in told
    assert ("session.deleted", things.session_id) == told[0]
    assert ("agent.created", things.agent_id) in told
    assert ("key.created", things.key_id) in told
    by_action = {entry["action"]: entry["actor"] for entry in reversed(entries)}
    assert by_action["session.exported"] == "user:user-1"
    assert by_action["session.deleted"].startswith("key:")
    assert "Hello there!" not in json.dumps(entries)


@pytest.mark.parametrize("statement", ["UPDATE {} SET actor = 'nobody'", "DELETE FROM {}"])
async def test_audit_log_only_grows(world: World, database: Database, statement: str) -> None:
    await world.key("agents:read")
    table = "audit_log" if database.is_sqlite else "agent_platform.audit_log"

    with pytest.raises(DBAPIError, match="only grows"):
        async with database.connection() as owner:
            await owner.execute(text(statement.format(table)))

    assert (await world.client.get("/audit", headers=ADMIN)).json()

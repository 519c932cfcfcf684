"""What a key may hand on: scopes, limits, life; and what ends with it."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import anyio
import httpx2
import pytest

from app.core.limits import NO_LIMITS
from tests.identity.world import ADMIN, READ_SCOPES, World, bearer

pytestmark = pytest.mark.anyio

CACHED_SECONDS = 0.6
LIMIT_NAMES = (
    "requests_per_minute", "concurrent_turns", "upload_minutes_per_day", "tokens_per_day",
    "usd_per_day",
)  # fmt: skip


async def make(world: World, maker: dict[str, Any], **body: Any) -> httpx2.Response:
    wanted = {"name": "child", "scopes": ["agents:read"]} | body
    return await world.client.post("/keys", json=wanted, headers=bearer(maker["key"]))


async def status(world: World, key: dict[str, Any]) -> int:
    return (await world.client.get("/agents", headers=bearer(key["key"]))).status_code


@pytest.mark.parametrize("name", LIMIT_NAMES)
@pytest.mark.parametrize("wanted", [0, -0.0, 8])
async def test_child_has_at_most_its_makers_limits_and_none_only_where_that_has_none(
    world: World, name: str, wanted: float
) -> None:
    limited: dict[str, Any] = {name: 7}
    unlimited: dict[str, Any] = {name: 0}
    bounded, free = await world.key(**limited), await world.key(**unlimited)

    refused = await make(world, bounded, **{name: int(wanted)})
    refused_for_users = await make(
        world, await world.key(user_limits={name: 7}), user_limits={name: int(wanted)}
    )
    allowed = await make(world, free, **{name: int(wanted)})
    smaller = await make(world, bounded, **{name: 6})
    inherited = await make(world, bounded)

    for response in (refused, refused_for_users):
        assert response.status_code == HTTPStatus.FORBIDDEN, response.text
        assert response.json()["code"] == "cannot-grant"
        assert name in response.json()["detail"]
    assert allowed.status_code == smaller.status_code == HTTPStatus.CREATED
    assert inherited.json()[name] == 7
    assert inherited.json()["parent_id"] == bounded["id"]


async def test_child_of_a_key_without_limits_of_its_own_is_bound_by_the_settings(
    world: World,
) -> None:
    maker = await world.key()

    too_much: list[dict[str, Any]] = [
        {"usd_per_day": 0},
        {"usd_per_day": 50.01},
        {"concurrent_turns": 65},
        {"user_limits": {"usd_per_day": 0}},
        {"user_limits": {"tokens_per_day": 500_001}},
    ]
    for body in too_much:
        assert (await make(world, maker, **body)).status_code == HTTPStatus.FORBIDDEN, body
    as_much: list[dict[str, Any]] = [
        {"usd_per_day": 50},
        {"usd_per_day": 0.1},
        {"user_limits": {"usd_per_day": 5}},
    ]
    for body in as_much:
        assert (await make(world, maker, **body)).status_code == HTTPStatus.CREATED, body


@pytest.mark.parametrize(
    ("own", "bound", "is_within"),
    [
        (0.1, Decimal("0.1"), True),
        (1e-6, 1e-6, True),
        (1e-6, 1e-9, False),
        (0, 1e-12, False),
        (1e-12, 0, True),
        (0, 0, True),
    ],
)
def test_limits_are_compared_as_numbers(own: float, bound: float, *, is_within: bool) -> None:
    wanted, bounds = (replace(NO_LIMITS, usd_per_day=each) for each in (own, bound))

    assert (wanted.first_above(bounds) is None) is is_within


async def test_grandchild_is_bound_by_every_key_that_it_descends_from(world: World) -> None:
    first = await world.key(usd_per_day=5)
    second = (await make(world, first, scopes=["keys:write", "agents:read"], usd_per_day=5)).json()
    lowered = await world.client.patch(
        f"/keys/{first['id']}", json={"usd_per_day": 1}, headers=ADMIN
    )
    await anyio.sleep(CACHED_SECONDS)

    assert lowered.json()["usd_per_day"] == 1
    assert (await make(world, second, usd_per_day=3)).status_code == HTTPStatus.FORBIDDEN
    assert (await make(world, second, usd_per_day=1)).status_code == HTTPStatus.CREATED


async def test_children_end_with_their_maker(world: World) -> None:
    first = await world.key()
    second = (await make(world, first, scopes=["keys:write", "agents:read"])).json()
    third = (await make(world, second)).json()
    stranger = await world.key()
    assert await status(world, third) == HTTPStatus.OK

    await world.client.delete(f"/keys/{first['id']}", headers=ADMIN)
    await anyio.sleep(CACHED_SECONDS)

    assert [await status(world, key) for key in (first, second, third)] == [401] * 3
    assert await status(world, stranger) == HTTPStatus.OK
    shown = await world.client.get(f"/keys/{third['id']}", headers=ADMIN)
    assert shown.json()["revoked_at"]


@pytest.mark.parametrize("zone", [timedelta(hours=5, minutes=30), timedelta(hours=-11)])
async def test_keys_do_not_outlive_their_maker_whatever_the_zone(
    world: World, zone: timedelta
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    maker = await world.key(expires_at=end.isoformat())

    def in_zone(moment: datetime) -> str:
        sign, span = ("+", zone) if zone >= timedelta(0) else ("-", -zone)
        hours, seconds = divmod(int(span.total_seconds()), 3600)
        local = (moment + zone).replace(tzinfo=None).isoformat()
        return f"{local}{sign}{hours:02}:{seconds // 60:02}"

    later = await make(world, maker, expires_at=in_zone(end + timedelta(seconds=1)))
    equal = await make(world, maker, expires_at=in_zone(end), scopes=["keys:write", "agents:read"])
    again = await make(world, equal.json(), expires_at=in_zone(end + timedelta(hours=1)))

    assert later.status_code == again.status_code == HTTPStatus.FORBIDDEN
    read = await world.client.get(f"/keys/{equal.json()['id']}", headers=ADMIN)
    assert datetime.fromisoformat(read.json()["expires_at"]) == end


async def test_key_revokes_and_changes_nothing_that_is_stronger_than_itself(world: World) -> None:
    weak = await world.key("keys:write", "keys:read", usd_per_day=5)
    stronger = [
        await world.key("agents:read", usd_per_day=1),
        await world.key("keys:read", usd_per_day=6),
        await world.key("keys:read", usd_per_day=0),
    ]
    weaker = await world.key("keys:read", usd_per_day=5)
    headers = bearer(weak["key"])

    for key in stronger:
        path = f"/keys/{key['id']}"
        for response in (
            await world.client.delete(path, headers=headers),
            await world.client.patch(path, json={"name": "mine"}, headers=headers),
            await world.client.post(f"{path}/rotate", json={}, headers=headers),
        ):
            assert response.status_code == HTTPStatus.FORBIDDEN, response.text
            assert response.json()["code"] == "cannot-grant"
    path = f"/keys/{weaker['id']}"
    assert (await world.client.patch(path, json={"name": "x"}, headers=headers)).is_success
    assert (await world.client.delete(path, headers=headers)).is_success
    itself = await world.client.delete(f"/keys/{weak['id']}", headers=headers)
    assert itself.status_code == HTTPStatus.NO_CONTENT


async def test_key_is_changed_up_to_what_its_editor_may_do(world: World) -> None:
    editor = await world.key("keys:write", "keys:read", "agents:read", usd_per_day=5)
    key = await world.key("agents:read", usd_per_day=2)
    path, headers = f"/keys/{key['id']}", bearer(editor["key"])

    async def change(**body: Any) -> httpx2.Response:
        return await world.client.patch(path, json=body, headers=headers)

    changed = await change(
        name="renamed", scopes=["keys:read"], usd_per_day=4.5, user_limits={"usd_per_day": 0.25}
    )
    for more in ({"usd_per_day": 5.5}, {"usd_per_day": 0}, {"usd_per_day": None},
                 {"scopes": ["agents:write"]}, {"user_limits": {"usd_per_day": 0}}):  # fmt: skip
        assert (await change(**more)).status_code == HTTPStatus.FORBIDDEN, more
    unknown = await change(created_at="2031-01-01T00:00:00Z")
    by_admin = await world.client.patch(path, json={"usd_per_day": 0}, headers=ADMIN)
    audited = (await world.client.get("/audit", headers=ADMIN)).json()

    assert changed.status_code == HTTPStatus.OK, changed.text
    body = changed.json()
    assert (body["name"], body["scopes"], body["usd_per_day"]) == ("renamed", ["keys:read"], 4.5)
    assert body["user_limits"]["usd_per_day"] == 0.25
    assert unknown.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert by_admin.json()["usd_per_day"] == 0
    assert {entry["action"] for entry in audited[:2]} == {"key.updated"}
    assert (await world.client.delete(path, headers=ADMIN)).is_success
    assert (await change(name="again")).json()["code"] == "key-revoked"


async def test_expiry_is_changed_up_to_that_of_the_keys_that_it_descends_from(
    world: World,
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    soon, late = end - timedelta(hours=1), end + timedelta(seconds=1)
    maker = await world.key(expires_at=end.isoformat())
    child = (await make(world, maker, scopes=["keys:write", "agents:read"])).json()
    grandchild = (await make(world, child)).json()
    own, strangers = await world.key(), await world.key()

    async def change(key: dict[str, Any], by: dict[str, str], expires_at: object) -> Any:  # noqa: ANN401
        if isinstance(expires_at, datetime):
            expires_at = expires_at.isoformat()
        response = await world.client.patch(
            f"/keys/{key['id']}", json={"expires_at": expires_at}, headers=by
        )
        if response.is_success and response.json()["expires_at"]:
            return datetime.fromisoformat(response.json()["expires_at"])
        return response.json().get("code")

    as_maker, as_child = bearer(maker["key"]), bearer(child["key"])
    assert await change(grandchild, ADMIN, late) == "cannot-grant"
    assert await change(child, as_maker, late) == "cannot-grant"
    assert await change(maker, as_maker, late) == "cannot-grant"
    assert await change(strangers, as_maker, soon) == "cannot-grant"  # it lives longer than its own
    assert await change(child, as_maker, soon) == soon
    assert await change(grandchild, ADMIN, end) == "cannot-grant"
    await anyio.sleep(CACHED_SECONDS)  # its stored expiry is later, but it ends with its maker
    assert await change(grandchild, as_child, soon) == soon
    await anyio.sleep(CACHED_SECONDS)
    assert await change(child, as_child, end) == "cannot-grant"
    assert await change(child, ADMIN, None) == end
    assert await change(own, ADMIN, soon) == soon
    assert await change(own, ADMIN, None) is None
    for wrong in ("2020-01-01T00:00:00Z", "2031-01-01T00:00:00", "tomorrow", 5):
        assert await change(own, ADMIN, wrong) == "request-invalid", wrong
    read_only = await world.key("keys:read")
    assert await change(own, bearer(read_only["key"]), soon) == "forbidden"
    in_other = ADMIN | {"X-Workspace-Id": world.other_workspace_id}
    assert await change(own, in_other, soon) == "key-not-found"


async def test_key_whose_expiry_has_moved_ends_then_with_its_children(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = await world.key()
    child = (await make(world, maker)).json()
    soon = datetime.now(UTC) + timedelta(minutes=1)
    path = f"/keys/{maker['id']}"
    shortened = await world.client.patch(path, json={"expires_at": soon.isoformat()}, headers=ADMIN)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    await anyio.sleep(CACHED_SECONDS)

    assert shortened.status_code == HTTPStatus.OK
    assert [await status(world, key) for key in (maker, child)] == [401] * 2
    audited = (await world.client.get("/audit", headers=ADMIN)).json()
    assert audited[0]["details"] == {"fields": ["expires_at"]}
    monkeypatch.undo()
    await world.client.patch(path, json={"expires_at": None}, headers=ADMIN)
    await anyio.sleep(CACHED_SECONDS)
    assert [await status(world, key) for key in (maker, child)] == [200] * 2


async def test_scopes_of_a_key_bound_its_children_and_their_tokens_at_once(world: World) -> None:
    maker = await world.key()
    child = (await make(world, maker, scopes=["sessions:write", "sessions:read"])).json()
    things = await world.things(bearer(maker["key"]))
    narrowed = {"scopes": ["sessions:write"]}
    await world.client.patch(f"/keys/{maker['id']}", json=narrowed, headers=ADMIN)
    await anyio.sleep(CACHED_SECONDS)

    read = await world.client.get(f"/sessions/{things.session_id}", headers=bearer(child["key"]))
    token = await world.token(things.session_id, bearer(child["key"]))
    by_token = await world.client.get(f"/sessions/{things.session_id}", headers=token)

    assert read.status_code == by_token.status_code == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    ("scopes", "reads", "talks"),
    [
        (["sessions:write"], 403, 403),
        (["sessions:write", "sessions:read"], 200, 403),
        (["sessions:write", "turns:write"], 403, 200),
        ([*READ_SCOPES, "sessions:write", "turns:write"], 200, 200),
    ],
)
async def test_session_token_may_do_what_its_maker_may(
    world: World, scopes: list[str], reads: int, talks: int
) -> None:
    things = await world.things()
    maker = await world.key(*scopes)
    token = await world.token(things.session_id, bearer(maker["key"]))
    said = {"session_id": things.session_id, "content": "Hi"}

    read = await world.client.get(f"/sessions/{things.session_id}", headers=token)
    talked = await world.client.post("/messages/text", json=said, headers=token)

    assert (read.status_code, talked.status_code) == (reads, talks)

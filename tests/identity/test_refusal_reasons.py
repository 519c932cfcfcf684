"""What is wrong with a credential: the log says it, and to holders of a JWT the answer does."""

import time
from typing import Any

import pytest

from tests.identity.world import World, bearer
from tests.observability.records import logged, wait_for_lines

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("claims", "detail"),
    [
        ({"iat": -900, "exp": -300}, "has expired"),
        ({"aud": "other"}, "is for another audience (`aud`)"),
        ({"iss": "https://evil.example/auth/v1"}, "comes from another issuer (`iss`)"),
        ({"nbf": 900}, "is not valid yet"),
        ({"role": "anon"}, "has a role that is not an end user's"),
        ({"role": None}, "lacks one of exp, sub, iss, aud and role"),
        ({"sub": " "}, "names no usable end user"),
    ],
    ids=str,
)
async def test_a_refused_jwt_is_told_why_in_the_answer_and_the_log(
    world: World, claims: dict[str, Any], detail: str
) -> None:
    now = int(time.time())
    timed: dict[str, Any] = {
        name: now + value if isinstance(value, int) else value for name, value in claims.items()
    }
    token = world.issuer.token(**timed)
    wait_for_lines(world.client)
    with logged() as lines:
        answer = await world.client.get("/agents", headers=bearer(token))

    (line,) = lines.named("request refused")
    assert answer.status_code == 401
    assert detail in answer.json()["detail"]
    assert detail in line["reason"]
    assert token not in answer.text + "".join(lines.text)


async def test_a_forged_jwt_learns_nothing_of_its_claims(world: World) -> None:
    token = world.issuer.token_signed_with_the_public_key()
    wait_for_lines(world.client)
    with logged() as lines:
        answer = await world.client.get("/agents", headers=bearer(token))

    assert answer.status_code == 401
    assert "exp" not in answer.json()["detail"]
    assert lines.named("request refused")[0]["reason"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unknown", "is unknown, revoked or expired"),
        ("revoked", "is unknown, revoked or expired"),
        ("wrong secret", "has another secret"),
        ("expired", "has expired"),
    ],
)
async def test_a_refused_keys_reason_is_in_the_log_alone(
    world: World, kind: str, reason: str
) -> None:
    wait_for_lines(world.client)
    with logged() as lines:
        answer = await world.client.get("/agents", headers=world.callers[kind])
        nothing = await world.client.get("/agents")

    assert reason in lines.named("request refused")[0]["reason"]
    assert answer.json()["detail"] == nothing.json()["detail"]

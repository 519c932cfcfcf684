"""Tokens of a Supabase project: what is believed of them, and what is not."""

import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import SecretStr, ValidationError

from app.core.config import Settings
from app.core.database import Database
from app.core.security import Unauthenticated
from app.services.identity import IdentityUnavailable
from app.services.identity.jwks import Jwks
from app.services.identity.supabase import SupabaseTokens
from app.state import Providers, build_state
from tests.identity.issuer import SECRET, Issuer
from tests.identity.world import bearer
from tests.support.application import IsolatedSettings, client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path, sqlite_template: Path) -> Settings:
    """What a token says does not depend on the database."""
    (tmp_path / "agent-platform.db").write_bytes(sqlite_template.read_bytes())
    return IsolatedSettings(data_dir=tmp_path)


async def status(client: httpx2.AsyncClient, token: str) -> int:
    return (await client.get("/sessions", headers=bearer(token))).status_code


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_user_comes_in_with_either_algorithm(
    client: httpx2.AsyncClient, issuer: Issuer, algorithm: str
) -> None:
    for _ in range(3):
        assert await status(client, issuer.token(algorithm=algorithm)) == HTTPStatus.OK
    assert issuer.requests == 1


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None}, {"exp": "never"}, {"exp": 10**400},
        {"aud": "other"}, {"aud": None}, {"aud": ["other"]}, {"aud": {}},
        {"iss": "https://evil.example/auth/v1"}, {"iss": "supabase"}, {"iss": None},
        {"role": "anon"}, {"role": "service_role"}, {"role": None}, {"role": ""}, {"role": ["x"]},
        {"sub": ""}, {"sub": None}, {"sub": 7}, {"sub": "x" * 201}, {"sub": "a\x00b"},
        {"sub": " "}, {"sub": "\ud800"},
    ],
    ids=str,
)  # fmt: skip
async def test_token_that_says_something_wrong_is_refused(
    client: httpx2.AsyncClient, issuer: Issuer, claims: dict[str, Any]
) -> None:
    assert await status(client, issuer.token(**claims)) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize(("claim", "seconds"), [("exp", -60), ("nbf", 600), ("iat", 600)])
async def test_token_of_another_time_is_refused(
    client: httpx2.AsyncClient, issuer: Issuer, claim: str, seconds: int
) -> None:
    claims: dict[str, Any] = {claim: int(time.time()) + seconds}
    token = issuer.token(**claims)
    assert await status(client, token) == HTTPStatus.UNAUTHORIZED


async def test_token_of_another_key_is_refused(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    strangers = {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    for algorithm, key in strangers.items():
        for kid in ("ec-1", "rsa-1", "unknown"):
            token = jwt.encode(claims, key, algorithm, headers={"kid": kid})
            assert await status(client, token) == HTTPStatus.UNAUTHORIZED
    for headers in ({}, {"kid": "ec-1", "jwk": {"kty": "oct", "k": "AAAA"}}):
        token = jwt.encode(claims, "x" * 40, "HS256", headers=headers)
        assert await status(client, token) == HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize(
    "token", ["..", "a.b.c", "eyJhbGciOiJFUzI1NiJ9..", "ey.ey.ey", "x" * 9000 + ".y.z", "é.é.é"]
)
async def test_nonsense_with_two_dots_is_refused(client: httpx2.AsyncClient, token: str) -> None:
    headers = [(b"authorization", b"Bearer " + token.encode())]

    assert (await client.get("/sessions", headers=headers)).status_code == HTTPStatus.UNAUTHORIZED


async def test_changed_token_is_refused(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    head, body, signature = issuer.token().split(".")
    other_body = issuer.token("user-2").split(".")[1]

    assert await status(client, f"{head}.{other_body}.{signature}") == HTTPStatus.UNAUTHORIZED
    assert await status(client, f"{head}.{body}.") == HTTPStatus.UNAUTHORIZED


async def test_unknown_key_asks_the_provider_once_in_a_while(
    client: httpx2.AsyncClient, issuer: Issuer
) -> None:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    for number in range(20):
        token = jwt.encode(claims, issuer.ec_key, "ES256", headers={"kid": f"unknown-{number}"})
        assert await status(client, token) == HTTPStatus.UNAUTHORIZED

    assert issuer.requests == 1


async def test_provider_that_is_away_is_503_and_not_401(
    client: httpx2.AsyncClient, issuer: Issuer
) -> None:
    issuer.is_away = True

    response = await client.get("/sessions", headers=bearer(issuer.token()))

    assert response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert response.json()["code"] == "identity-unavailable"
    assert int(response.headers["retry-after"]) >= 1


async def test_secret_verifies_hs256_and_nothing_else(issuer: Issuer) -> None:
    tokens = SupabaseTokens(issuer.url, "authenticated", SecretStr(SECRET))

    caller = await tokens.caller(issuer.token(algorithm="HS256").encode())
    assert caller.user_id == "user-1"
    for algorithm in ("ES256", "RS256", "none"):
        with pytest.raises(Unauthenticated):
            await tokens.caller(issuer.token(algorithm=algorithm).encode())


async def test_public_keys_verify_no_hs256(issuer: Issuer) -> None:
    async with Jwks(f"{issuer.url}/auth/v1/.well-known/jwks.json") as keys:
        tokens = SupabaseTokens(issuer.url, "authenticated", keys)
        for token in (issuer.token(algorithm="HS256"), issuer.token_signed_with_the_public_key()):
            with pytest.raises(Unauthenticated):
                await tokens.caller(token.encode())


async def test_keys_that_are_known_outlive_an_outage(issuer: Issuer) -> None:
    async with Jwks(f"{issuer.url}/auth/v1/.well-known/jwks.json") as keys:
        assert await keys.key("ec-1")
        issuer.is_away = True
        assert await keys.key("ec-1")
        assert await keys.key("unknown") is None


async def test_address_without_keys_is_unavailable() -> None:
    async with Jwks("http://127.0.0.1:9/none") as keys:
        with pytest.raises(IdentityUnavailable):
            await keys.key("ec-1")


async def test_without_a_project_no_token_is_believed(
    settings: Settings, database: Database, providers: Providers, issuer: Issuer
) -> None:
    async with (
        build_state(settings, database, providers) as state,
        client_of(settings, state, peer="192.0.2.1") as client,
    ):
        assert await status(client, issuer.token()) == HTTPStatus.UNAUTHORIZED


def test_secret_needs_the_project_that_it_is_of() -> None:
    with pytest.raises(ValidationError, match="SUPABASE_URL"):
        IsolatedSettings(supabase_jwt_secret=SecretStr(SECRET))
    with pytest.raises(ValidationError):
        IsolatedSettings(supabase_url="https://x.supabase.co", supabase_jwt_secret=SecretStr("x"))

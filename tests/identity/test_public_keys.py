"""The public keys of an identity provider, as they come over the wire."""

from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app.core.security import Unauthenticated
from app.services.identity import IdentityUnavailable
from app.services.identity.jwks import Jwks
from app.services.identity.supabase import SupabaseTokens
from tests.identity.issuer import Issuer

pytestmark = pytest.mark.anyio


def keys_of(issuer: Issuer) -> Jwks:
    return Jwks(f"{issuer.url}/auth/v1/.well-known/jwks.json")


@pytest.fixture
def own_issuer() -> Issuer:
    """One that a test may change."""
    return Issuer()


@pytest.mark.parametrize("piece_bytes", [1 << 20, 300, 40])
async def test_keys_that_come_in_pieces_are_read_to_the_end(
    own_issuer: Issuer, piece_bytes: int
) -> None:
    own_issuer.piece_bytes = piece_bytes
    async with own_issuer.serving(), keys_of(own_issuer) as keys:
        tokens = SupabaseTokens(own_issuer.url, "authenticated", keys)
        for algorithm in ("ES256", "RS256"):
            caller = await tokens.caller(own_issuer.token(algorithm=algorithm).encode())
            assert caller.user_id == "user-1"


async def test_keys_without_an_end_are_refused(own_issuer: Issuer) -> None:
    own_issuer.piece_bytes, own_issuer.padding_bytes = 64 << 10, 300_000
    async with own_issuer.serving(), keys_of(own_issuer) as keys:
        with pytest.raises(IdentityUnavailable):
            await keys.key("ec-1")


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # the issuer's
@pytest.mark.parametrize(("bits", "is_used"), [(1024, False), (2040, False), (2048, True)])
async def test_rsa_key_below_2048_bits_is_not_used(
    own_issuer: Issuer, bits: int, is_used: bool
) -> None:
    own_issuer.rsa_key = rsa.generate_private_key(65537, bits)
    async with own_issuer.serving(), keys_of(own_issuer) as keys:
        tokens = SupabaseTokens(own_issuer.url, "authenticated", keys)
        assert (await keys.key("rsa-1") is not None) is is_used
        assert await keys.key("ec-1")
        token = _signed(own_issuer)
        if is_used:
            assert (await tokens.caller(token)).user_id == "user-1"
        else:
            with pytest.raises(Unauthenticated):
                await tokens.caller(token)


def _signed(issuer: Issuer) -> bytes:
    claims: dict[str, Any] = jwt.decode(issuer.token(), options={"verify_signature": False})
    return jwt.encode(claims, issuer.rsa_key, "RS256", headers={"kid": "rsa-1"}).encode()

"""Verify the access tokens of Supabase Auth; each identifies an end user.

Follows RFC 8725: algorithm, issuer and audience come from the settings, never from the token.
"""

import hashlib
import time
from collections import OrderedDict
from typing import Any, Protocol

import jwt
from pydantic import SecretStr

from app.core.security import (
    DEFAULT_WORKSPACE_ID,
    Caller,
    CallerKind,
    Permission,
    Unauthenticated,
)

_LEEWAY_SECONDS = 10
_MAX_TOKEN_BYTES = 8192
_MAX_USER_ID_CHARACTERS = 200
_CACHE_SECONDS = 60.0
_MAX_CACHED_TOKENS = 10_000
_REFUSED_ROLES = frozenset(("anon", "service_role", "supabase_admin", ""))

USER_PERMISSIONS = frozenset(
    (
        Permission.AGENTS_READ,
        Permission.SESSIONS_READ,
        Permission.SESSIONS_WRITE,
        Permission.TURNS_READ,
        Permission.TURNS_WRITE,
        Permission.FILES_READ,
        Permission.FILES_WRITE,
        Permission.USAGE_READ,
    )
)


class PublicKeys(Protocol):
    """Source of the public keys that verify tokens."""

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """Return the key with the id `kid`, if any. Raises `IdentityUnavailable`."""
        ...


class SupabaseTokens:
    """Verifies tokens with the project's public keys, or with its JWT secret, never with both."""

    def __init__(self, url: str, audience: str, verifier: PublicKeys | SecretStr) -> None:
        self._issuer = f"{url}/auth/v1"
        self._audience = audience
        self._verifier = verifier
        self._cache: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    async def caller(self, token: bytes) -> Caller:
        """Return the end user of a token. Raises `Unauthenticated` or `IdentityUnavailable`."""
        digest = hashlib.sha256(token).digest()
        cached = self._cache.get(digest)
        if cached and time.monotonic() < cached[1]:
            caller = cached[0]
            if caller.expires_at and time.time() >= caller.expires_at:
                raise _refused("has expired")
            return caller
        caller = await self._verify(token)
        self._cache[digest] = caller, time.monotonic() + _CACHE_SECONDS
        self._cache.move_to_end(digest)
        if len(self._cache) > _MAX_CACHED_TOKENS:
            self._cache.popitem(last=False)
        return caller

    async def _verify(self, token: bytes) -> Caller:
        if len(token) > _MAX_TOKEN_BYTES:
            raise _refused("is too long")
        try:
            key, algorithm = await self._key(token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "sub", "iss", "aud", "role"]},
            )
            return _user(claims)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _refused(_reason(error)) from None

    async def _key(self, token: bytes) -> tuple[Any, str]:
        """Return the key that verifies the token, and the only algorithm accepted with it."""
        if isinstance(self._verifier, SecretStr):
            return self._verifier.get_secret_value().encode(), "HS256"
        kid = jwt.get_unverified_header(token).get("kid")
        key = await self._verifier.key(kid) if isinstance(kid, str) else None
        if key is None:
            raise _refused("is signed with a key that the project does not have")
        return key.key, key.algorithm_name


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "has expired"),
    (jwt.InvalidAudienceError, "is for another audience (`aud`): see SUPABASE_JWT_AUDIENCE"),
    (jwt.InvalidIssuerError, "comes from another issuer (`iss`): see SUPABASE_URL"),
    (jwt.ImmatureSignatureError, "is not valid yet (`nbf` or `iat`)"),
    (jwt.MissingRequiredClaimError, "lacks one of exp, sub, iss, aud and role"),
    (jwt.InvalidAlgorithmError, "is signed with another algorithm"),
    (jwt.InvalidSignatureError, "has a wrong signature"),
)
"""Claims are looked at once the signature is right, so these tell a forger nothing."""


def _reason(error: Exception) -> str:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return "cannot be read"


def _refused(reason: str) -> Unauthenticated:
    """Return the refusal of a token; whoever has it is told what is wrong with it."""
    error = Unauthenticated(f"The access token {reason}.")
    error.reason = f"the JWT {reason}"
    return error


def _user(claims: dict[str, Any]) -> Caller:
    user_id, role = claims["sub"], claims["role"]
    if not isinstance(role, str) or role in _REFUSED_ROLES:
        raise _refused("has a role that is not an end user's")
    is_storable = isinstance(user_id, str) and user_id.isprintable() and user_id.strip()
    if not is_storable or len(user_id) > _MAX_USER_ID_CHARACTERS:
        raise _refused("names no usable end user (`sub`)")
    return Caller(
        DEFAULT_WORKSPACE_ID,
        CallerKind.USER,
        USER_PERMISSIONS,
        user_id=user_id,
        expires_at=float(claims["exp"]) + _LEEWAY_SECONDS,
    )

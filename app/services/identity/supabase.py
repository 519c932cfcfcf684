"""Supabase's users: a token of its Auth becomes an end user, who sees their own sessions.

Follows RFC 8725: algorithm, issuer and audience are ours to say, never the token's.
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
    unauthenticated,
)

_LEEWAY_SECONDS = 10
_LONGEST_TOKEN = 8192
_LONGEST_USER_ID = 200
_BELIEVED_SECONDS = 60.0
_REMEMBERED = 10_000
_REFUSED_ROLES = frozenset(("anon", "service_role", "supabase_admin", ""))

USER_PERMISSIONS = frozenset(
    (
        Permission.AGENTS_READ,
        Permission.SESSIONS_READ,
        Permission.SESSIONS_WRITE,
        Permission.TURNS_READ,
        Permission.TURNS_WRITE,
        Permission.USAGE_READ,
    )
)


class PublicKeys(Protocol):
    """Where the keys of tokens come from."""

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """Return the key of that name. Raises `IdentityUnavailable`."""
        ...


class SupabaseTokens:
    """Checks tokens by the project's public keys, or by its secret, never by both."""

    def __init__(self, url: str, audience: str, verifier: PublicKeys | SecretStr) -> None:
        self._issuer = f"{url}/auth/v1"
        self._audience = audience
        self._verifier = verifier
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    async def caller(self, token: bytes) -> Caller:
        """Return the end user. Raises `Unauthenticated`, or `IdentityUnavailable`."""
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known and time.monotonic() < known[1]:
            caller = known[0]
            if caller.expires_at and time.time() >= caller.expires_at:
                raise unauthenticated()
            return caller
        caller = await self._verify(token)
        self._known[digest] = caller, time.monotonic() + _BELIEVED_SECONDS
        self._known.move_to_end(digest)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return caller

    async def _verify(self, token: bytes) -> Caller:
        if len(token) > _LONGEST_TOKEN:
            raise unauthenticated()
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
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise unauthenticated() from None

    async def _key(self, token: bytes) -> tuple[Any, str]:
        """Return what verifies the token, and the one algorithm to do it with."""
        if isinstance(self._verifier, SecretStr):
            return self._verifier.get_secret_value().encode(), "HS256"
        kid = jwt.get_unverified_header(token).get("kid")
        key = await self._verifier.key(kid) if isinstance(kid, str) else None
        if key is None:
            raise unauthenticated()
        return key.key, key.algorithm_name


def _user(claims: dict[str, Any]) -> Caller:
    user_id, role = claims["sub"], claims["role"]
    if not isinstance(role, str) or role in _REFUSED_ROLES:
        raise unauthenticated()
    is_storable = isinstance(user_id, str) and user_id.isprintable() and user_id.strip()
    if not is_storable or len(user_id) > _LONGEST_USER_ID:
        raise unauthenticated()
    return Caller(
        DEFAULT_WORKSPACE_ID,
        CallerKind.USER,
        USER_PERMISSIONS,
        user_id=user_id,
        expires_at=float(claims["exp"]) + _LEEWAY_SECONDS,
    )

"""Fetch and cache the public keys (JWKS) of an identity provider."""

import logging
import time
from types import TracebackType
from typing import Any, Self

import aiohttp
import anyio
import jwt
import orjson

from app.services.identity.errors import IdentityUnavailable

logger = logging.getLogger(__name__)

_FRESH_SECONDS = 600.0
"""After this the keys are fetched again, so that a revoked key stops working."""
_STALE_SECONDS = 3600.0
"""After this cached keys are no longer accepted while their server is unreachable."""
_COOLDOWN_SECONDS = 10.0
"""A token that names an unknown key makes us ask at most this often."""
_LARGEST_BYTES = 256 * 1024
_LEAST_RSA_BITS = 2048


class Jwks:
    """The key set at one URL, indexed by `kid`; an async context manager."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = anyio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Create the HTTP session; it connects at the first request."""
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=5)
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the HTTP session."""
        if self._session:
            await self._session.close()

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """Return the public key `kid`, or `None` where the key set has none of that id.

        Raises `IdentityUnavailable` where no fresh enough keys could be fetched.
        """
        if self._is_due(kid):
            async with self._fetching:
                if self._is_due(kid):
                    await self._fetch()
        if time.monotonic() - self._fetched_at > _STALE_SECONDS:
            raise IdentityUnavailable(
                "The identity provider does not answer, so the token cannot be verified now.",
                retry_after_seconds=_COOLDOWN_SECONDS,
            )
        return self._keys.get(kid)

    def _is_due(self, kid: str) -> bool:
        now = time.monotonic()
        is_wanted = kid not in self._keys or now - self._fetched_at > _FRESH_SECONDS
        return is_wanted and now - self._tried_at > _COOLDOWN_SECONDS

    async def _fetch(self) -> None:
        if self._session is None:
            raise RuntimeError("the HTTP session is not open: enter the context manager first")
        self._tried_at = time.monotonic()
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                response.raise_for_status()
                body = await _read_to_end(response.content)
            keys: list[dict[str, Any]] = orjson.loads(body)["keys"]
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            # The exception's text may contain the URL, and that a password.
            reason = type(error).__name__
            logger.warning(
                "The identity provider's public keys could not be fetched: %s. Check SUPABASE_URL.",
                reason,
            )
            return
        self._keys = dict(filter(None, map(_read, keys)))
        self._fetched_at = self._tried_at


async def _read_to_end(content: aiohttp.StreamReader) -> bytes:
    """Return the whole body, in however many pieces it comes. Raises `ValueError` above a limit."""
    body = bytearray()
    while piece := await content.readany():
        body += piece
        if len(body) > _LARGEST_BYTES:
            raise ValueError("the keys are longer than any can be")
    return bytes(body)


def _read(key: dict[str, Any]) -> tuple[str, jwt.PyJWK] | None:
    """Read one key; those of another use or algorithm, and short ones, are none of ours."""
    try:
        if key.get("use", "sig") != "sig":
            return None
        read = jwt.PyJWK.from_dict(key)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    if read.key_type == "RSA" and read.key.key_size < _LEAST_RSA_BITS:
        logger.warning("An RSA key of the identity provider has less than 2048 bits: not used")
        return None
    is_known = (read.key_type, read.algorithm_name) in {("EC", "ES256"), ("RSA", "RS256")}
    return (read.key_id, read) if is_known and read.key_id else None

"""The public keys of an identity provider, fetched when they are needed and then kept."""

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
"""After this the keys are fetched again, so that one that was taken back stops working."""
_STALE_SECONDS = 3600.0
"""After this they are not believed any more while their server is away."""
_COOLDOWN_SECONDS = 10.0
"""A token that names an unknown key makes us ask at most this often."""
_LARGEST_BYTES = 256 * 1024


class Jwks:
    """The keys at one address, by their `kid`; an async context manager."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = anyio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open a pool; nothing is connected yet."""
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
        """Close the pool."""
        if self._session:
            await self._session.close()

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """Return the key of that name; `None` where there is none.

        Raises `IdentityUnavailable` where no keys could be had.
        """
        if self._is_due(kid):
            async with self._fetching:
                if self._is_due(kid):
                    await self._fetch()
        if time.monotonic() - self._fetched_at > _STALE_SECONDS:
            raise IdentityUnavailable(
                "The identity provider does not answer, so the token cannot be checked.",
                retry_after_seconds=_COOLDOWN_SECONDS,
            )
        return self._keys.get(kid)

    def _is_due(self, kid: str) -> bool:
        now = time.monotonic()
        is_wanted = kid not in self._keys or now - self._fetched_at > _FRESH_SECONDS
        return is_wanted and now - self._tried_at > _COOLDOWN_SECONDS

    async def _fetch(self) -> None:
        if self._session is None:
            raise RuntimeError("the pool is not open")
        self._tried_at = time.monotonic()
        try:
            async with self._session.get(self._url, allow_redirects=False) as response:
                response.raise_for_status()
                body = await response.content.read(_LARGEST_BYTES)
            keys: list[dict[str, Any]] = orjson.loads(body)["keys"]
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:
            # Its text may have the URL, which may hold a password.
            reason = type(error).__name__
            logger.warning("The identity provider's keys could not be had: %s", reason)
            return
        self._keys = dict(filter(None, map(_read, keys)))
        self._fetched_at = self._tried_at


def _read(key: dict[str, Any]) -> tuple[str, jwt.PyJWK] | None:
    """Read one key; those of another use or algorithm are none of ours."""
    try:
        if key.get("use", "sig") != "sig":
            return None
        read = jwt.PyJWK.from_dict(key)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    is_known = (read.key_type, read.algorithm_name) in {("EC", "ES256"), ("RSA", "RS256")}
    return (read.key_id, read) if is_known and read.key_id else None

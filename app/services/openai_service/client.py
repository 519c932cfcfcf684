"""The connections to one provider, and the border where HTTP's errors become ours."""

import asyncio
import logging
import os
import re
import socket
import ssl
import sys
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from anyio import to_thread

from app.services.openai_service.base_url import BaseUrl
from app.services.openai_service.connection import NotHttpError
from app.services.openai_service.failures import failure_of_status
from app.services.openai_service.wire import Response, Upload, WirePool
from app.services.ports import (
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    UpstreamIncomplete,
)

if TYPE_CHECKING:
    from app.services.openai_service.full_http import FullHttp, FullResponse, WebSocket

logger = logging.getLogger(__name__)

_OPENAI_HOST = "api.openai.com"
_ERROR_BODY_BYTES = 2048
_ERROR_BODY_SECONDS = 1.0

_ERROR_NAME = re.compile(rb'"(?:type|code)"\s*:\s*"([a-z_]{1,40})"')
"""What kind of error it is, in one word, as `rate_limit_exceeded`."""


class OpenAIClient:
    """One pool of warm connections to a server that speaks OpenAI's API.

    An async context manager; use it inside only. `api_key` may be empty where the server wants
    none. The first byte of an answer must come within `first_byte_timeout_seconds` of the
    request, every later piece within `chunk_timeout_seconds` of the one before; `connect`
    includes DNS and TLS. The proxy variables of the environment are honoured, as they are on entry.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        connect_timeout_seconds: float = 5,
        first_byte_timeout_seconds: float = 30,
        chunk_timeout_seconds: float = 30,
    ) -> None:
        self._base_url = BaseUrl(base_url)
        self._api_key = (api_key or "").strip()
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ValueError("The API key holds characters that no HTTP header can carry.")
        if self._api_key and self._base_url.has_credentials:
            raise ValueError("The base URL holds credentials although an API key is set.")
        self._connect_timeout_seconds = connect_timeout_seconds
        self.first_byte_timeout_seconds = first_byte_timeout_seconds
        self.chunk_timeout_seconds = chunk_timeout_seconds
        self._headers = {"User-Agent": "agent-platform", "Accept-Encoding": "identity"}
        if self._api_key:
            self._headers["Authorization"] = f"Bearer {self._api_key}"
        self._is_open = False
        self._proxy: str | None = None
        self._wire: WirePool | None = None
        self._full: FullHttp | None = None
        self._opening_full = asyncio.Lock()

    @property
    def is_openai(self) -> bool:
        """True for OpenAI itself, false for servers that are merely compatible."""
        return self._base_url.host == _OPENAI_HOST

    async def __aenter__(self) -> Self:
        """Open the pool; nothing is connected before the first request."""
        self._proxy = _proxy_for(self._base_url)
        if self._proxy is None and not self._base_url.has_credentials:
            self._wire = WirePool(self._base_url, self._headers, self._connect_timeout_seconds)
        self._is_open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        self._is_open = False
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._full is not None:
            await self._full.close()

    async def post(
        self, path: str, body: bytes | Upload, *, setting: str, patience_seconds: float = 0
    ) -> "Answer":
        """Send `body`, which is JSON where it is bytes, and return an answer of status 2xx.

        `setting` is the variable that chose the model; errors name it. `patience_seconds` are
        added to the time for the first byte. The answer is a context manager, and leaving it
        early breaks the connection off. Raises `ProviderError`.
        """
        deadline = self._first_byte_deadline() + patience_seconds
        http = self._wire or await self._full_http()
        return await self._ask(http.post(path, body, deadline), deadline, setting)

    async def get(self, path: str, *, setting: str) -> "Answer":
        """Ask for `path`; as `post`."""
        deadline = self._first_byte_deadline()
        http = self._wire or await self._full_http()
        return await self._ask(http.get(path, deadline), deadline, setting)

    async def open_websocket(
        self, path: str, query: Mapping[str, str], *, setting: str
    ) -> "WebSocket":
        """Connect a WebSocket, which the caller closes. Raises `ProviderError`."""
        try:
            async with asyncio.timeout(self.first_byte_timeout_seconds):
                http = await self._full_http()
                return await http.open_websocket(path, query, setting=setting)
        except _TRANSPORT_ERRORS as error:
            _raise_before_answer(error)

    async def _ask(
        self,
        response_to_come: "Coroutine[Any, Any, Response | FullResponse]",
        deadline: float,
        setting: str,
    ) -> "Answer":
        try:
            response = await response_to_come
        except _TRANSPORT_ERRORS as error:
            _raise_before_answer(error)
        if response.status // 100 == 2:  # noqa: PLR2004  # 2xx
            return Answer(response, deadline, self.chunk_timeout_seconds)
        error_body = await _read_error_body(response)
        self._log_refusal(response.status, error_body)
        raise failure_of_status(response.status, response.headers, error_body, setting=setting)

    def _first_byte_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.first_byte_timeout_seconds

    async def _full_http(self) -> "FullHttp":
        """Return what does the rest of HTTP, loaded beside the event loop at the first need."""
        if not self._is_open:
            raise RuntimeError("OpenAIClient is used outside its `async with`.")
        async with self._opening_full:
            if self._full is None:
                full_http = await to_thread.run_sync(_load_full_http)
                self._full = full_http(
                    self._base_url, self._headers, self._proxy, self._connect_timeout_seconds
                )
        return self._full

    def _log_refusal(self, status: int, body: bytes) -> None:
        if not logger.isEnabledFor(logging.DEBUG):
            return
        # Not its words: they may quote the prompt, or a key.
        named = b", ".join(_ERROR_NAME.findall(body)).decode()
        logger.debug("The provider answered HTTP %d (%s)", status, named or "no error named")


class Answer:
    """An answer of status 2xx whose body is still to come. Leaving it early breaks it off."""

    __slots__ = ("_chunk_timeout_seconds", "_deadline", "_end", "_loop", "_response")

    def __init__(
        self, response: "Response | FullResponse", deadline: float, chunk_timeout_seconds: float
    ) -> None:
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = deadline
        self._end: float | None = None
        self._chunk_timeout_seconds = chunk_timeout_seconds

    def __enter__(self) -> Self:
        """Leave it to the caller when to read."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop the connection, unless the answer was read to its end."""
        self._response.close()

    @property
    def media_type(self) -> str:
        """What the provider says that it sends, in small letters; empty where it does not say."""
        return self._response.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """Return whatever has come, waiting for the next piece; `b""` is the end.

        Raises `ProviderTimeout` and `UpstreamIncomplete`.
        """
        deadline = self._end or self._deadline or self._loop.time() + self._chunk_timeout_seconds
        self._deadline = None
        try:
            return await self._response.read_any(deadline)
        except TimeoutError:
            raise ProviderTimeout("The AI provider fell silent within its answer.") from None
        except _BROKEN_OFF as error:
            logger.debug("The provider's answer broke off: %s", type(error).__name__)
            raise UpstreamIncomplete("The AI provider's answer broke off.") from None

    async def read_all(self, limit_bytes: int) -> bytes:
        """Return the rest of the body; raises as `read` does, and above `limit_bytes`."""
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > limit_bytes:
                raise UpstreamIncomplete("The AI provider's answer is longer than any can be.")
        return bytes(body)

    def end_within(self, seconds: float) -> None:
        """Give all that is still to come this long; a second call can only shorten it."""
        end = self._loop.time() + seconds
        self._end = end if self._end is None else min(end, self._end)

    async def drain(self) -> None:
        """Read what is left, for a connection is only used again after its answer's end."""
        try:
            while await self.read():
                pass
        except ProviderError:
            return


_TRANSPORT_ERRORS = (NotHttpError, OSError)
"""`OSError` includes `TimeoutError`."""
_BROKEN_OFF = (*_TRANSPORT_ERRORS, RuntimeError)
"""A transport that is gone raises `RuntimeError`."""


def _load_full_http() -> "type[FullHttp]":
    from app.services.openai_service.full_http import FullHttp

    return FullHttp


def _raise_before_answer(error: Exception) -> NoReturn:
    """Translate; without the cause, whose repr holds the request's headers."""
    logger.debug("The provider gave no answer: %s", type(error).__name__)
    match error:
        case TimeoutError():
            raise ProviderTimeout("The AI provider did not answer in time.") from None
        case socket.gaierror():
            sentence = "The AI provider's host name is not known; check OPENAI_BASE_URL."
        case ssl.SSLError():
            sentence = "No safe connection to the AI provider; check its certificate."
        case NotHttpError():
            raise UpstreamIncomplete("The AI provider's answer is not HTTP.") from None
        case ConnectionResetError() | ConnectionAbortedError() | BrokenPipeError():
            sentence = "The AI provider closed the connection before it answered."
        case _:
            sentence = "The AI provider cannot be reached; check OPENAI_BASE_URL."
    raise ProviderUnavailable(sentence) from None


async def _read_error_body(response: "Response | FullResponse") -> bytes:
    """Read a little of it; the status alone is enough where that fails."""
    body = bytearray()
    deadline = asyncio.get_running_loop().time() + _ERROR_BODY_SECONDS
    try:
        while len(body) < _ERROR_BODY_BYTES and (piece := await response.read_any(deadline)):
            body += piece
    except _BROKEN_OFF:
        pass
    finally:
        response.close()
    return bytes(body[:_ERROR_BODY_BYTES])


def _proxy_for(url: BaseUrl) -> str | None:
    is_named = any(name.lower().endswith("_proxy") for name in os.environ)
    if not is_named and sys.platform not in {"darwin", "win32"}:  # which have settings of their own
        return None
    from urllib.request import getproxies, proxy_bypass

    if not url.host or proxy_bypass(url.host):
        return None
    return getproxies().get(url.scheme)

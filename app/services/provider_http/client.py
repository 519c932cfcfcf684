"""The connections to one provider, and the border where HTTP's errors become ours."""

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from anyio import to_thread

from app.services.ports import (
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    UpstreamIncomplete,
)
from app.services.provider_http.base_url import BaseUrl
from app.services.provider_http.connection import ConnectTimeoutError, NotHttpError
from app.services.provider_http.failures import SettingNames, failure_of_status
from app.services.provider_http.http1_pool import Http1Pool, Http1Response, Upload
from app.services.provider_http.proxies import find_proxy

if TYPE_CHECKING:
    from app.services.provider_http.aiohttp_transport import (
        AiohttpResponse,
        AiohttpTransport,
        WebSocket,
    )

logger = logging.getLogger(__name__)

_OPENAI_HOST = "api.openai.com"
_ERROR_BODY_BYTES = 8192
_ERROR_BODY_SECONDS = 1.0

_ERROR_NAME = re.compile(rb'"(?:type|code)"\s*:\s*"([a-z_]{1,40})"')
"""What kind of error it is, in one word, as `rate_limit_exceeded`."""


class ProviderClient:
    """One pool of warm connections to a server that speaks OpenAI's API.

    An async context manager; use it inside only. `api_key` may be empty where the server wants
    none. The first byte of an answer must come within `first_byte_timeout_seconds` of the
    request, every later piece within `chunk_timeout_seconds` of the one before; `connect`
    includes DNS and TLS. The proxy variables of the environment are honoured, as they are on entry.
    Errors name `base_url_setting` and `api_key_setting`. Construction and entry raise `ValueError`
    with a sentence for the operator where a connection could never be made.
    """

    def __init__(  # noqa: PLR0913  # all have defaults
        self,
        base_url: str,
        api_key: str | None,
        *,
        connect_timeout_seconds: float = 5,
        first_byte_timeout_seconds: float = 30,
        chunk_timeout_seconds: float = 30,
        base_url_setting: str = "OPENAI_BASE_URL",
        api_key_setting: str = "OPENAI_API_KEY",
    ) -> None:
        self._settings = base_url_setting, api_key_setting
        try:
            self._base_url = BaseUrl(base_url.strip())
        except ValueError:
            raise ValueError(f"{base_url_setting} is no address of a server.") from None
        self._api_key = (api_key or "").strip()
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ValueError(
                f"{api_key_setting} holds characters that no HTTP header can carry; copy it again."
            )
        if self._api_key and self._base_url.has_credentials:
            raise ValueError(
                f"{base_url_setting} holds credentials although {api_key_setting} is set."
            )
        self._connect_timeout_seconds = connect_timeout_seconds
        self.first_byte_timeout_seconds = first_byte_timeout_seconds
        self.chunk_timeout_seconds = chunk_timeout_seconds
        self._headers = {"User-Agent": "agent-platform", "Accept-Encoding": "identity"}
        if self._api_key:
            self._headers["Authorization"] = f"Bearer {self._api_key}"
        self._is_open = False
        self._proxy: str | None = None
        self._pool: Http1Pool | None = None
        self._aiohttp: AiohttpTransport | None = None
        self._aiohttp_lock = asyncio.Lock()

    @property
    def is_openai(self) -> bool:
        """True for OpenAI itself, false for servers that are merely compatible."""
        host = self._base_url.host
        return host == _OPENAI_HOST or host.endswith(f".{_OPENAI_HOST}")  # its regions

    def names(self, setting: str) -> SettingNames:
        """Return the variables that errors name; `setting` is the one that chose the model."""
        return SettingNames(setting, *self._settings)

    async def __aenter__(self) -> Self:
        """Open the pool; nothing is connected before the first request."""
        self._proxy = find_proxy(self._base_url)
        if self._proxy is None and not self._base_url.has_credentials:
            self._pool = Http1Pool(self._base_url, self._headers, self._connect_timeout_seconds)
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
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._aiohttp is not None:
            await self._aiohttp.close()

    async def post(
        self, path: str, body: bytes | Upload, *, setting: str, extra_first_byte_seconds: float = 0
    ) -> "ProviderResponse":
        """Send `body`, which is JSON where it is bytes, and return an answer of status 2xx.

        `setting` is the variable that chose the model; errors name it. `extra_first_byte_seconds`
        are added to the time for the first byte. The answer is a context manager, and leaving it
        early breaks the connection off. Raises `ProviderError`.
        """
        deadline = self._first_byte_deadline() + extra_first_byte_seconds
        http = self._pool or await self._open_aiohttp()
        return await self._send(http.post(path, body, deadline), deadline, setting)

    async def get(self, path: str, *, setting: str) -> "ProviderResponse":
        """Ask for `path`; as `post`."""
        deadline = self._first_byte_deadline()
        http = self._pool or await self._open_aiohttp()
        return await self._send(http.get(path, deadline), deadline, setting)

    async def open_websocket(
        self, path: str, query: Mapping[str, str], *, setting: str
    ) -> "WebSocket":
        """Connect a WebSocket, which the caller closes.

        Raises `MissingWebSocket` where the server has none there, and `ProviderError`.
        """
        try:
            async with asyncio.timeout(self.first_byte_timeout_seconds):
                http = await self._open_aiohttp()
                return await http.open_websocket(path, query, names=self.names(setting))
        except _TRANSPORT_ERRORS as error:
            _raise_before_response(error, self.names(setting))

    async def _send(
        self,
        response_to_come: "Coroutine[Any, Any, Http1Response | AiohttpResponse]",
        deadline: float,
        setting: str,
    ) -> "ProviderResponse":
        try:
            response = await response_to_come
        except _TRANSPORT_ERRORS as error:
            _raise_before_response(error, self.names(setting))
        if response.status // 100 == 2:  # noqa: PLR2004  # 2xx
            return ProviderResponse(response, deadline, self.chunk_timeout_seconds)
        error_body = await _read_error_body(response)
        self._log_refusal(response.status, error_body)
        names = self.names(setting)
        raise failure_of_status(response.status, response.headers, error_body, names=names)

    def _first_byte_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.first_byte_timeout_seconds

    async def _open_aiohttp(self) -> "AiohttpTransport":
        """Return what does the rest of HTTP, loaded beside the event loop at the first need."""
        if not self._is_open:
            raise RuntimeError("ProviderClient is used outside its `async with`.")
        async with self._aiohttp_lock:
            if self._aiohttp is None:
                full_http = await to_thread.run_sync(_load_aiohttp_transport)
                self._aiohttp = full_http(
                    self._base_url, self._headers, self._proxy, self._connect_timeout_seconds
                )
        return self._aiohttp

    def _log_refusal(self, status: int, body: bytes) -> None:
        if not logger.isEnabledFor(logging.DEBUG):
            return
        # Not its words: they may quote the prompt, or a key.
        named = b", ".join(_ERROR_NAME.findall(body)).decode()
        logger.debug("The provider answered HTTP %d (%s)", status, named or "no error named")


class ProviderResponse:
    """An answer of status 2xx whose body is still to come. Leaving it early breaks it off."""

    __slots__ = (
        "_chunk_timeout_seconds",
        "_end",
        "_first_deadline",
        "_is_read",
        "_loop",
        "_response",
    )

    def __init__(
        self,
        response: "Http1Response | AiohttpResponse",
        deadline: float,
        chunk_timeout_seconds: float,
    ) -> None:
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._first_deadline = deadline
        self._is_read = False
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

    def media_parameter(self, name: str) -> str:
        """Return a parameter of the media type, as `rate`; empty where there is none."""
        _, *parameters = self._response.headers.get("Content-Type", "").split(";")
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == name:
                return value.strip().strip('"')
        return ""

    async def read(self, *, has_begun: bool = True) -> bytes:
        """Return whatever has come, waiting for the next piece; `b""` is the end.

        While nothing `has_begun` that counts, the time for the first byte still runs: some servers
        send a head and then think. Raises `ProviderTimeout` and `UpstreamIncomplete`.
        """
        deadline = self._end or self._next_deadline(has_begun=has_begun)
        try:
            return await self._response.read_any(deadline)
        except TimeoutError:
            raise ProviderTimeout("The AI provider fell silent within its answer.") from None
        except _BROKEN_OFF as error:
            logger.debug("The provider's answer broke off: %s", type(error).__name__)
            raise UpstreamIncomplete("The AI provider's answer broke off.") from None

    def _next_deadline(self, *, has_begun: bool) -> float:
        if not self._is_read:
            self._is_read = True
            return self._first_deadline
        deadline = self._loop.time() + self._chunk_timeout_seconds
        return deadline if has_begun else max(deadline, self._first_deadline)

    async def read_all(self, limit_bytes: int) -> bytes:
        """Return the rest of the body; raises as `read` does, and above `limit_bytes`."""
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > limit_bytes:
                raise UpstreamIncomplete("The AI provider's answer is longer than any can be.")
        return bytes(body)

    @property
    def is_ending(self) -> bool:
        """True while `end_within` holds."""
        return self._end is not None

    def end_within(self, seconds: float | None) -> None:
        """Give all that is still to come this long, from now on; `None` takes that back."""
        self._end = None if seconds is None else self._loop.time() + seconds

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


def _load_aiohttp_transport() -> "type[AiohttpTransport]":
    from app.services.provider_http.aiohttp_transport import AiohttpTransport

    return AiohttpTransport


def _raise_before_response(error: Exception, names: SettingNames) -> NoReturn:
    """Translate; without the cause, whose repr holds the request's headers."""
    logger.debug("The provider gave no answer: %s", type(error).__name__)
    match error:
        case ConnectTimeoutError():
            sentence = f"No connection to the AI provider in time; check {names.base_url}."
            raise ProviderTimeout(sentence, is_outage=True) from None
        case TimeoutError():
            raise ProviderTimeout("The AI provider did not answer in time.") from None
        case socket.gaierror():
            sentence = f"The AI provider's host name is not known; check {names.base_url}."
        case ssl.SSLError():
            sentence = "No safe connection to the AI provider; check its certificate."
        case NotHttpError():
            raise UpstreamIncomplete("The AI provider's answer is not HTTP.") from None
        case ConnectionResetError() | ConnectionAbortedError() | BrokenPipeError():
            sentence = "The AI provider closed the connection before it answered."
        case _:
            sentence = f"The AI provider cannot be reached; check {names.base_url}."
    raise ProviderUnavailable(sentence, is_outage=True) from None


async def _read_error_body(response: "Http1Response | AiohttpResponse") -> bytes:
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

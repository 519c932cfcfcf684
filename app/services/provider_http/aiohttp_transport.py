"""The whole of HTTP, by aiohttp: WebSockets, proxies and credentials in the URL.

aiohttp's errors become those that `wire` raises in the same case. Imported at the first need, since
aiohttp takes 8 MB and a fifth of a second.
"""

import asyncio
import io
import logging
import socket
import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from app.services.ports import (
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    UpstreamIncomplete,
)
from app.services.provider_http.base_url import BaseUrl
from app.services.provider_http.connection import ConnectTimeoutError, NotHttpError
from app.services.provider_http.content_coding import make_decompressor, read_decompressed
from app.services.provider_http.failures import (
    MissingWebSocket,
    SettingNames,
    failure_of_status,
)
from app.services.provider_http.http1_pool import Upload

logger = logging.getLogger(__name__)

_CONNECTION_LIMIT = 1000
_MAX_MESSAGE_BYTES = 8 << 20
_NO_WEBSOCKET = frozenset({400, 403, 404, 405, 426, 501})
"""How servers refuse a WebSocket at a path that has none; Starlette does so with 403."""
_REDIRECTS = frozenset({300, 301, 302, 303, 307, 308})


class AiohttpTransport:
    """A pool of connections; `headers` go with every request. Open it on the event loop.

    They are no headers of the session: aiohttp sends those to the proxy, too.
    """

    def __init__(
        self,
        base_url: BaseUrl,
        headers: Mapping[str, str],
        proxy: str | None,
        connect_seconds: float,
    ) -> None:
        self._base_url = base_url
        self._headers = dict(headers)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTION_LIMIT, keepalive_timeout=240, ttl_dns_cache=60
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds),
            auto_decompress=False,  # ours has a limit
            proxy=proxy,  # trust_env would ask two threads in each request
            middlewares=[_refuse_redirects],
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def get(self, path: str, deadline: float) -> "AiohttpResponse":
        """Ask for `path`; raises as `WirePool.post` does, and `ProviderError`."""
        return await self._send(deadline, "GET", path)

    async def post(self, path: str, body: bytes | Upload, deadline: float) -> "AiohttpResponse":
        """Send JSON or an upload; raises as `get` does."""
        upload = body if isinstance(body, Upload) else Upload("application/json", (body,))
        data = io.BytesIO(b"".join(upload.pieces))
        return await self._send(deadline, "POST", path, data, {"Content-Type": upload.content_type})

    async def open_websocket(
        self, path: str, query: Mapping[str, str], *, names: SettingNames
    ) -> "WebSocket":
        """Connect. Errors name the settings in `names`.

        Raises `MissingWebSocket`, and as `get` does.
        """
        url = self._base_url.websocket_url(path, query)
        try:
            websocket = await self._session.ws_connect(
                url, headers=self._headers, max_msg_size=_MAX_MESSAGE_BYTES
            )
            return WebSocket(websocket)
        except aiohttp.WSServerHandshakeError as error:
            status, headers = error.status, error.headers or {}
        except _RedirectRefused as error:
            raise failure_of_status(error.status, {}, b"", names=names) from None
        except aiohttp.ClientError as error:
            _raise_translated(error)
        logger.debug("The provider answered HTTP %d to a WebSocket", status)
        if status // 100 in {1, 2}:
            failure: ProviderError = UpstreamIncomplete(
                f"The AI provider does not speak WebSocket; check {names.model}."
            )
            raise MissingWebSocket(failure)
        failure = failure_of_status(status, headers, b"", names=names)
        raise MissingWebSocket(failure) if status in _NO_WEBSOCKET else failure

    async def _send(
        self,
        deadline: float,
        method: str,
        path: str,
        body: io.BytesIO | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> "AiohttpResponse":
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._session.request(
                    method,
                    self._base_url.url(path),
                    data=body,
                    headers={**self._headers, **headers},
                    allow_redirects=False,
                    middlewares=(),
                )
        except aiohttp.ClientError as error:
            _raise_translated(error)
        return AiohttpResponse(response)


class AiohttpResponse:
    """A response whose body is still to come, as `wire.Response` is."""

    __slots__ = ("_decompressor", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers
        self._decompressor = make_decompressor(response.headers)

    async def read_any(self, deadline: float) -> bytes:
        """Return what has come; `b""` is the end.

        Raises `ConnectionError` where it breaks off, `TimeoutError` after `deadline`, and
        `NotHttpError`.
        """
        if self._decompressor is None:
            return await self._read_raw(deadline)
        return await read_decompressed(self._decompressor, self._read_raw, deadline)

    async def _read_raw(self, deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._response.content.readany()
        except (aiohttp.ClientError, HttpProcessingError, RuntimeError) as error:
            # `RuntimeError` is for readers of a connection that is gone.
            raise ConnectionResetError(type(error).__name__) from None

    def close(self) -> None:
        """Drop the connection; one that was read to its end is in the pool already."""
        self._response.close()


class WebSocket:
    """An open WebSocket, of whose messages only text counts. Raises `ConnectionError`."""

    __slots__ = ("_websocket",)

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = websocket

    async def send(self, text: str) -> None:
        """Send a message."""
        try:
            await self._websocket.send_str(text)
        except aiohttp.ClientError as error:
            raise ConnectionResetError(type(error).__name__) from None

    async def receive(self) -> str:
        """Wait for a message of text; those of bytes are skipped."""
        while True:
            message = await self._websocket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                return message.data
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise ConnectionResetError("the WebSocket was closed")

    async def close(self) -> None:
        """Say goodbye, and wait for the other side to do so."""
        await self._websocket.close()


class _RedirectRefused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep a WebSocket at the host that was configured: aiohttp would follow."""
    response = await handler(request)
    if response.status in _REDIRECTS:
        response.close()
        raise _RedirectRefused(response.status)
    return response


def _raise_translated(error: aiohttp.ClientError) -> NoReturn:
    """Raise what `wire` would; without the cause, whose repr holds the request's headers."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            raise ConnectTimeoutError from None
        case aiohttp.ServerTimeoutError():
            raise TimeoutError from None
        case aiohttp.ClientConnectorDNSError():
            raise socket.gaierror from None
        case aiohttp.ClientSSLError():
            raise ssl.SSLError from None
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            raise ProviderUnavailable(
                "The proxy to the AI provider does not serve; check HTTP_PROXY, HTTPS_PROXY and "
                "ALL_PROXY.",
                is_outage=True,
            ) from None
        case aiohttp.ClientConnectorError():
            raise ConnectionRefusedError from None
        case aiohttp.InvalidURL():
            raise ProviderRejected("The AI provider's base URL is no address.") from None
        case aiohttp.ClientResponseError():
            raise NotHttpError("the response is not HTTP") from None
        case _:
            raise ConnectionResetError(type(error).__name__) from None

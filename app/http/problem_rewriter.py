"""Writes problem documents anew, in the shape that the clients of some paths know.

Everything that answers a request of this server answers an error as a problem document, also what
never reaches an endpoint.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
from starlette.types import Message, Send

from app.http.problems import PROBLEM_TYPE

_PROBLEM_TYPE = PROBLEM_TYPE.encode()
_LONGEST_PROBLEM_BYTES = 64 * 1024
_Headers = Sequence[tuple[bytes, bytes]]


class RewrittenError(NamedTuple):
    """An error as the client is sent it."""

    status: int
    headers: _Headers
    """Its content type, and what is new; the others stay."""
    body: bytes


class ProblemRewriter:
    """A `send` that holds a problem document back until it is complete, and writes it anew."""

    def __init__(
        self,
        send: Send,
        rewrite: Callable[[int, dict[str, Any]], RewrittenError],
        more_headers: Callable[[], _Headers] = tuple,
    ) -> None:
        """`rewrite` is given status and document; `more_headers` are added to every response."""
        self._send = send
        self._rewrite = rewrite
        self._more_headers = more_headers
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Send a message of ASGI, or keep it."""
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *self._more_headers()]
            message = {**message, "headers": headers}
            if (b"content-type", _PROBLEM_TYPE) in headers:
                self._start = message
                return
        elif self._start and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body") and len(self._body) < _LONGEST_PROBLEM_BYTES:
                return
            await self._send_error(self._start)
            return
        await self._send(message)

    async def _send_error(self, start: Message) -> None:
        status, new_headers, body = self._rewrite(start["status"], orjson.loads(bytes(self._body)))
        headers = [
            pair for pair in start["headers"] if pair[0] not in {b"content-type", b"content-length"}
        ]
        headers += (pair for pair in new_headers if pair not in headers)
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

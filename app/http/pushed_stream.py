"""Streams whose pieces somebody hands over as they come; the head waits for the first of them."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.core.errors import AppError
from app.http.event_stream import with_write_deadline
from app.http.protocol import HAS_WRITE_DEADLINE
from app.services.identity import OpenStreamRegistry

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Emit = Callable[[bytes], Awaitable[None]]
Work = Callable[[Emit], Awaitable[None]]
"""Makes the response, and hands its pieces over. It is cancelled where the client leaves."""


class PushedStream(Response):
    """Sends what `work` hands over.

    An error before the first piece is raised, so that it is answered with its status. A later one
    is `encode_error`'s piece, or without that the response breaks off. `ping` is sent when there
    was nothing else for `ping_seconds`.
    """

    def __init__(  # noqa: PLR0913  # what a stream is
        self,
        work: Work,
        media_type: str,
        *,
        encode_error: Callable[[AppError], bytes] | None = None,
        ping: bytes = b"",
        ping_seconds: float = 10,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers={**_HEADERS, **(headers or {})}, media_type=media_type)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._work = work
        self._encode_error = encode_error
        self._ping = ping
        self._ping_seconds = ping_seconds
        self.has_begun = False
        """True once something was sent."""
        self._sent_at = 0.0
        self._failure: Exception | None = None
        self._sending = anyio.Lock()

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: dict[str, Any] = scope["state"]
        send = send if state.get(HAS_WRITE_DEADLINE) else with_write_deadline(send)
        self._sent_at = anyio.current_time()
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            if self._ping:
                group.start_soon(self._keep_alive, send, group.cancel_scope)
            await self._run(state, send, group.cancel_scope)
            group.cancel_scope.cancel()
        if self._failure:
            raise self._failure

    async def _run(self, state: dict[str, Any], send: Send, whole: anyio.CancelScope) -> None:
        registry: OpenStreamRegistry = state["open_streams"]
        working, refused = anyio.CancelScope(), list[AppError]()

        def cut(refusal: AppError) -> None:
            refused.append(refusal)
            working.cancel()

        async def emit(piece: bytes) -> None:
            await self._send(piece, send, whole)

        failure: AppError | None = None
        with registry.cut_when_refused(state["caller"], cut), working:
            try:
                await self._work(emit)
            except AppError as error:
                failure = error
        failure = refused[0] if refused else failure
        if failure and (self._encode_error is None or not self.has_begun):
            self._failure = failure
            return
        if failure and self._encode_error:
            await emit(self._encode_error(failure))
        await self._send(b"", send, whole, is_last=True)

    async def _keep_alive(self, send: Send, whole: anyio.CancelScope) -> None:
        while True:
            await anyio.sleep_until(self._sent_at + self._ping_seconds)
            if anyio.current_time() >= self._sent_at + self._ping_seconds:
                await self._send(self._ping, send, whole)

    async def _send(
        self, piece: bytes, send: Send, whole: anyio.CancelScope, *, is_last: bool = False
    ) -> None:
        """Send a piece, behind the head; one that cannot be sent ends the response."""
        async with self._sending:
            try:
                if not self.has_begun:
                    self.has_begun = True
                    head = {"status": 200, "headers": self.raw_headers}
                    await send({"type": "http.response.start", **head})
                body = {"body": piece, "more_body": not is_last}
                await send({"type": "http.response.body", **body})
                self._sent_at = anyio.current_time()
            except (AppError, TimeoutError) as error:
                self._failure = error
                whole.cancel()
                await anyio.lowlevel.checkpoint()

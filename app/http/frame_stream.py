"""Streams of frames that a dialect has encoded, whose head waits for the first frame."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from app.core.errors import AppError
from app.http.content_negotiation import EVENT_STREAM_TYPE
from app.http.event_stream import with_write_deadline
from app.http.protocol import HAS_WRITE_DEADLINE
from app.services.identity import OpenStreamRegistry

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class FrameStream(Response):
    """Sends frames as they come.

    An error before the first frame is raised, so that it is answered with its status; the
    generator turns later ones into frames. `on_end` is called when the client has left, its key is
    refused, or the stream is over.
    """

    media_type = EVENT_STREAM_TYPE

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        encode_error: Callable[[AppError], bytes],
        on_end: Callable[[], Awaitable[None]],
        headers: dict[str, str],
    ) -> None:
        super().__init__(headers=_HEADERS | headers, media_type=EVENT_STREAM_TYPE)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._frames = frames
        self._encode_error = encode_error
        self._on_end = on_end
        self._has_begun = False

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: dict[str, Any] = scope["state"]
        send = send if state.get(HAS_WRITE_DEADLINE) else with_write_deadline(send)
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                try:
                    await self._send_all(state, send)
                except (AppError, TimeoutError) as error:
                    failure = error
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._on_end()
        if failure:
            raise failure

    async def _send_all(self, state: dict[str, Any], send: Send) -> None:
        open_streams: OpenStreamRegistry = state["open_streams"]
        scope, refused = anyio.CancelScope(), list[AppError]()

        def cut(refusal: AppError) -> None:
            refused.append(refusal)
            scope.cancel()

        with open_streams.cut_when_refused(state["caller"], cut), scope:
            async with aclosing(self._frames) as frames:
                async for frame in frames:
                    await self._begin(send)
                    await send(_chunk(frame))
        if refused:
            if not self._has_begun:
                raise refused[0]
            await send(_chunk(self._encode_error(refused[0])))
        await self._begin(send)
        await send({"type": "http.response.body", "body": b""})

    async def _begin(self, send: Send) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})


def _chunk(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}

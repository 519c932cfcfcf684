"""A spoken answer as a response: streamed while it is made, in ranges once it is stored."""

import re
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from http import HTTPStatus

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.models import Turn
from app.routers.problems import RangeNotSatisfiable
from app.routers.streams import OnDisconnect
from app.routers.voice_headers import voice_headers
from app.schemas.chat import ClipRead, RecordingRead, TurnAudio
from app.services.turns import audio_store
from app.services.voice import VoiceAnswer

_MP3 = "audio/mpeg"
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)


class _LiveSound(StreamingResponse):
    """Streams an answer that is being spoken; `left` is called if the client leaves before."""

    def __init__(
        self, answer: VoiceAnswer, headers: dict[str, str], left: OnDisconnect | None
    ) -> None:
        super().__init__(self._chunks(answer), media_type=_MP3, headers=headers)
        self._left = left
        self._is_over = False

    async def _chunks(self, answer: VoiceAnswer) -> AsyncGenerator[bytes]:
        async with aclosing(answer.mp3()) as chunks:
            async for chunk in chunks:
                yield chunk
        self._is_over = True

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await super().__call__(scope, receive, send)
        if self._left and not self._is_over:
            await self._left()


def sound_response(
    answer: VoiceAnswer,
    range_header: str | None = None,
    headers: dict[str, str] | None = None,
    left: OnDisconnect | None = None,
) -> Response:
    """Return the sound; its first must have been waited for. `left` is for when the client leaves.

    Safari asks for a range of everything that it plays; what is not stored yet has none.
    Raises `RangeNotSatisfiable`.
    """
    told = voice_headers(answer) | (headers or {})
    if answer.whole is None:
        return _LiveSound(answer, told, left)
    told["Accept-Ranges"] = "bytes"
    size = len(answer.whole)
    wanted = _RANGE.fullmatch(range_header or "")
    if wanted is None or not any(wanted.groups()):
        return Response(answer.whole, media_type=_MP3, headers=told)
    first, last = _bounds(wanted[1], wanted[2], size)
    if first > last:
        raise RangeNotSatisfiable(size)
    told["Content-Range"] = f"bytes {first}-{last}/{size}"
    body = answer.whole[first : last + 1]
    return Response(body, HTTPStatus.PARTIAL_CONTENT, headers=told, media_type=_MP3)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """Return the first and last byte of a range (RFC 9110, section 14.1.2)."""
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1


async def sound_shape(db: AsyncSession, turn: Turn) -> TurnAudio:
    """Return what is kept of a turn's sound as an export has it."""
    connection = await db.connection()
    found = await audio_store.read_recording(connection, turn.workspace_id, turn.id)
    pieces = await audio_store.read_pieces(connection, turn.workspace_id, turn.id)
    mp3 = b"".join(piece.mp3 or b"" for piece in pieces)
    recording = None
    if found:
        recording = RecordingRead(
            format=found[0].format,
            duration_seconds=found[0].duration_seconds,
            data=b64encode(found[0].data).decode(),
        )
    return TurnAudio(
        turn_id=turn.id,
        recording=recording,
        mp3=b64encode(mp3).decode() if mp3 else None,
        clips=[ClipRead.model_validate(piece) for piece in pieces],
    )

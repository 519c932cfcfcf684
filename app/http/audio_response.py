"""Responses with the MP3 of an answer: streamed during its synthesis, with ranges once stored."""

import logging
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from http import HTTPStatus

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.core.errors import AppError
from app.http.disconnection import DisconnectCallback
from app.http.problems import RangeNotSatisfiable
from app.http.protocol import ABORT_CONNECTION
from app.http.voice_headers import voice_headers
from app.models import Turn
from app.schemas.exports import ClipRead, RecordingRead, TurnAudio
from app.services.turns.storage import audio_store
from app.services.voice import VoiceAnswer

logger = logging.getLogger(__name__)

_MP3 = "audio/mpeg"
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)


class _LiveAudioResponse(StreamingResponse):
    """Streams an answer during synthesis; calls `on_disconnect` if the client disconnects early."""

    def __init__(
        self, answer: VoiceAnswer, headers: dict[str, str], on_disconnect: DisconnectCallback | None
    ) -> None:
        super().__init__(self._chunks(answer), media_type=_MP3, headers=headers)
        self._turn_id = answer.turn_id
        self._on_disconnect = on_disconnect
        self._is_complete = False

    async def _chunks(self, answer: VoiceAnswer) -> AsyncGenerator[bytes]:
        async with aclosing(answer.mp3()) as chunks:
            async for chunk in chunks:
                yield chunk
        self._is_complete = True

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)
        except AppError as error:
            self._is_complete = True  # the turn has ended
            logger.warning("turn %s failed while its audio was sent: %s", self._turn_id, error.code)
            abort = scope.get("state", {}).get(ABORT_CONNECTION)
            if abort is None:
                raise  # other servers abort the connection where an application fails
            await _cut(abort, receive)
        if self._on_disconnect and not self._is_complete:
            await self._on_disconnect()


async def _cut(abort: Callable[[], None], receive: Receive) -> None:
    """Close the connection in the middle of the answer: an end would look like its end."""
    abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def audio_response(
    answer: VoiceAnswer,
    range_header: str | None = None,
    headers: dict[str, str] | None = None,
    on_disconnect: DisconnectCallback | None = None,
) -> Response:
    """Return a response with the answer's MP3; await `answer.first_sound` before.

    `on_disconnect` is called if the client disconnects before the end. Ranges, which Safari
    requests for all media, are served once the answer is stored. Raises `RangeNotSatisfiable`.
    """
    all_headers = voice_headers(answer) | (headers or {})
    if answer.whole is None:
        return _LiveAudioResponse(answer, all_headers, on_disconnect)
    all_headers["Accept-Ranges"] = "bytes"
    size = len(answer.whole)
    range_match = _RANGE.fullmatch(range_header or "")
    if range_match is None or not any(range_match.groups()):
        return Response(answer.whole, media_type=_MP3, headers=all_headers)
    first, last = _bounds(range_match[1], range_match[2], size)
    if first > last:
        raise RangeNotSatisfiable(size)
    all_headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    body = answer.whole[first : last + 1]
    return Response(body, HTTPStatus.PARTIAL_CONTENT, headers=all_headers, media_type=_MP3)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    """Return the first and the last offset of a byte range (RFC 9110, section 14.1.2)."""
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1


async def export_audio(db: AsyncSession, turn: Turn) -> TurnAudio:
    """Return the stored audio of a turn in the form of an export."""
    connection = await db.connection()
    recording_row = await audio_store.read_recording(connection, turn.workspace_id, turn.id)
    pieces = await audio_store.read_pieces(connection, turn.workspace_id, turn.id)
    mp3 = b"".join(piece.mp3 or b"" for piece in pieces)
    recording = None
    if recording_row:
        recording = RecordingRead(
            format=recording_row[0].format,
            duration_seconds=recording_row[0].duration_seconds,
            data=b64encode(recording_row[0].data).decode(),
        )
    return TurnAudio(
        turn_id=turn.id,
        recording=recording,
        mp3=b64encode(mp3).decode() if mp3 else None,
        clips=[ClipRead.model_validate(piece) for piece in pieces],
    )

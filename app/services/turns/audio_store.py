"""The sound of voice turns in the database: recordings, and the pieces of spoken answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID

from sqlalchemy import ColumnElement, Table, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models import AudioClip, StoredRecording, utc_now
from app.services.ports import AudioFormat, Recording
from app.services.turns.heard import heard_content
from app.services.turns.loading import lock_session
from app.services.turns.records import TurnRecord
from app.services.turns.statements import is_message, messages
from app.services.turns.voice_stages import SpokenPiece, VoiceStages

_recordings = cast("Table", StoredRecording.__table__)
_clips = cast("Table", AudioClip.__table__)
_PIECE_COLUMNS = (
    _clips.c.index, _clips.c.text, _clips.c.content_start, _clips.c.content_end,
    _clips.c.sample_rate_hz, _clips.c.start_sample, _clips.c.sample_count, _clips.c.mp3,
)  # fmt: skip
_TIMINGS_KEPT = timedelta(days=1)
"""Where no sound is kept: an answer may be interrupted for as long as it can be playing."""


@dataclass(frozen=True, slots=True)
class AudioStore:
    """What is kept of a voice turn: the recording until it is settled, then for `kept_days`."""

    kept_days: int = 7

    async def keep_recording(
        self, connection: AsyncConnection, record: TurnRecord, voice: VoiceStages
    ) -> None:
        """Store the recording, in the transaction that accepts the turn."""
        if record.attempt > 1:
            await self._forget(connection, record)
        recording = voice.recording
        await connection.execute(
            insert(_recordings).values(
                workspace_id=record.workspace_id,
                turn_id=record.id,
                format=recording.format.value,
                duration_seconds=recording.duration_seconds,
                has_clips=voice.has_clips,
                data=recording.data,
                created_at=utc_now(),
            )
        )

    async def settle(
        self,
        connection: AsyncConnection,
        record: TurnRecord,
        voice: VoiceStages | None,
        content: str,
        played_ms: int | None,
    ) -> None:
        """Store what was spoken, and what of it was heard, just before the turn is settled.

        The session is locked first, as everybody does it. Raises `TurnLost`.
        """
        await lock_session(connection, record, utc_now())
        if not self.kept_days:
            await connection.execute(delete(_recordings).where(_is_of(_recordings, record)))
        pieces = voice.pieces() if voice else ()
        if pieces:
            await connection.execute(delete(_clips).where(_is_of(_clips, record)))
            await connection.execute(insert(_clips), [self._row(record, each) for each in pieces])
        if played_ms is not None:
            await _store_heard(connection, record, content, pieces, played_ms)

    def _row(self, record: TurnRecord, piece: SpokenPiece) -> dict[str, object]:
        return {
            "workspace_id": record.workspace_id,
            "turn_id": record.id,
            "index": piece.index,
            "text": piece.text,
            "content_start": piece.content_start,
            "content_end": piece.content_end,
            "sample_rate_hz": piece.sample_rate_hz,
            "start_sample": piece.start_sample,
            "sample_count": piece.sample_count,
            "start_ms": piece.start_ms,
            "duration_ms": piece.duration_ms,
            "mp3": piece.mp3 if self.kept_days else None,
            "created_at": utc_now(),
        }

    async def prune(self, connection: AsyncConnection) -> None:
        """Drop what is older than `kept_days`."""
        before = utc_now() - timedelta(days=self.kept_days)
        if self.kept_days:
            await connection.execute(delete(_recordings).where(_recordings.c.created_at < before))
        before = utc_now() - max(timedelta(days=self.kept_days), _TIMINGS_KEPT)
        await connection.execute(delete(_clips).where(_clips.c.created_at < before))

    async def _forget(self, connection: AsyncConnection, record: TurnRecord) -> None:
        """Drop what an attempt left that failed."""
        await connection.execute(delete(_recordings).where(_is_of(_recordings, record)))
        await connection.execute(delete(_clips).where(_is_of(_clips, record)))
        answer = is_message(record, record.message_id)
        await connection.execute(update(messages).where(answer).values(heard_content=None))


async def read_recording(
    connection: AsyncConnection, workspace_id: UUID, turn_id: UUID
) -> tuple[Recording, bool] | None:
    """Return what the user sent, and whether the turn's followers want clips."""
    row = (
        await connection.execute(
            select(_recordings).where(
                _recordings.c.workspace_id == workspace_id, _recordings.c.turn_id == turn_id
            )
        )
    ).one_or_none()
    if row is None:
        return None
    recording = Recording(row.data, AudioFormat(row.format), row.duration_seconds)
    return recording, row.has_clips


async def read_pieces(
    connection: AsyncConnection, workspace_id: UUID, turn_id: UUID
) -> list[SpokenPiece]:
    """Return what was spoken in a turn, in order."""
    rows = await connection.execute(
        select(*_PIECE_COLUMNS)
        .where(_clips.c.workspace_id == workspace_id, _clips.c.turn_id == turn_id)
        .order_by(_clips.c.index)
    )
    return [SpokenPiece(*row) for row in rows]


async def truncate_to_heard(
    connection: AsyncConnection, record: TurnRecord, played_ms: int
) -> None:
    """Store what was heard of an answer that is settled. Raises `TurnLost`."""
    await lock_session(connection, record, utc_now())
    content = await connection.scalar(
        select(messages.c.content).where(is_message(record, record.message_id))
    )
    pieces = await read_pieces(connection, record.workspace_id, record.id)
    if pieces:
        await _store_heard(connection, record, content or "", pieces, played_ms)


async def _store_heard(
    connection: AsyncConnection,
    record: TurnRecord,
    content: str,
    pieces: Sequence[SpokenPiece],
    played_ms: int,
) -> None:
    await connection.execute(
        update(messages)
        .where(is_message(record, record.message_id))
        .values(heard_content=heard_content(content, pieces, played_ms))
    )


def _is_of(table: Table, record: TurnRecord) -> ColumnElement[bool]:
    return and_(table.c.workspace_id == record.workspace_id, table.c.turn_id == record.id)

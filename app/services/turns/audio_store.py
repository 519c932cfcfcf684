"""The sound of voice turns in the database: recordings, and the pieces of spoken answers."""

from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID

from sqlalchemy import ColumnElement, Table, and_, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.direct import Direct, Program, Statement
from app.models import AudioClip, StoredRecording, utc_now
from app.services.ports import AudioFormat, Recording
from app.services.turns.heard import heard_content
from app.services.turns.loading import lock_session
from app.services.turns.records import TurnRecord
from app.services.turns.statements import is_message, messages, named
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

    def keep_recording(self, record: TurnRecord, voice: VoiceStages) -> Program[None]:
        """Store the recording, in the transaction that accepts the turn."""
        turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
        if record.attempt > 1:  # drop what an attempt left that failed
            yield [
                _DROP_RECORDING(**turn),
                _DROP_CLIPS(**turn),
                _set_heard(record, None),
            ]
        recording = voice.recording
        yield [
            _KEEP_RECORDING(
                workspace_id=record.workspace_id,
                turn_id=record.id,
                format=recording.format.value,
                duration_seconds=recording.duration_seconds,
                has_clips=voice.has_clips,
                data=recording.data,
                created_at=utc_now(),
            )
        ]

    def settle(
        self,
        record: TurnRecord,
        voice: VoiceStages | None,
        content: str,
        played_ms: int | None,
    ) -> Program[None]:
        """Store what was spoken, and what of it was heard, just before the turn is settled.

        The session is locked first, as everybody does it. Raises `TurnLost`.
        """
        yield from lock_session(record, utc_now())
        turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
        pieces = tuple(voice.pieces()) if voice else ()
        work: list[Statement] = []
        if not self.kept_days:
            work.append(_DROP_RECORDING(**turn))
        if pieces:
            work.append(_DROP_CLIPS(**turn))
        work += [_KEEP_CLIP(**self._row(record, piece)) for piece in pieces]
        if played_ms is not None:
            work.append(_set_heard(record, heard_content(content, pieces, played_ms)))
        if work:
            yield work

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

    def prune(self) -> Program[None]:
        """Drop what is older than `kept_days`."""
        kept = timedelta(days=self.kept_days)
        work = [_PRUNE_CLIPS(before_=utc_now() - max(kept, _TIMINGS_KEPT))]
        if self.kept_days:
            work.append(_PRUNE_RECORDINGS(before_=utc_now() - kept))
        yield work


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


def truncate_to_heard(record: TurnRecord, played_ms: int) -> Program[None]:
    """Store what was heard of an answer that is settled. Raises `TurnLost`."""
    yield from lock_session(record, utc_now())
    content, rows = yield [
        _CONTENT(workspace_id_=record.workspace_id, message_id_=record.message_id),
        _PIECES(workspace_id_=record.workspace_id, turn_id_=record.id),
    ]
    pieces = [SpokenPiece(*row, mp3=None) for row in rows]
    if pieces and content:
        yield [_set_heard(record, heard_content(content[0][0], pieces, played_ms))]


def _set_heard(record: TurnRecord, heard: str | None) -> Statement:
    return _SET_HEARD(
        workspace_id_=record.workspace_id, message_id_=record.message_id, heard_content=heard
    )


def _is_of(table: Table) -> ColumnElement[bool]:
    return and_(
        table.c.workspace_id == bindparam("workspace_id_"),
        table.c.turn_id == bindparam("turn_id_"),
    )


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


_DROP_RECORDING = Direct(lambda _dialect: delete(_recordings).where(_is_of(_recordings)))
_DROP_CLIPS = Direct(lambda _dialect: delete(_clips).where(_is_of(_clips)))
_KEEP_RECORDING = Direct(lambda _dialect: insert(_recordings).values(**named(*_names(_recordings))))
_KEEP_CLIP = Direct(lambda _dialect: insert(_clips).values(**named(*_names(_clips))))
_PRUNE_RECORDINGS = Direct(
    lambda _dialect: delete(_recordings).where(_recordings.c.created_at < bindparam("before_"))
)
_PRUNE_CLIPS = Direct(
    lambda _dialect: delete(_clips).where(_clips.c.created_at < bindparam("before_"))
)
_CONTENT = Direct(lambda _dialect: select(messages.c.content).where(is_message()))
_PIECES = Direct(
    lambda _dialect: select(*_PIECE_COLUMNS[:-1]).where(_is_of(_clips)).order_by(_clips.c.index)
)
_SET_HEARD = Direct(
    lambda _dialect: update(messages).where(is_message()).values(**named("heard_content"))
)

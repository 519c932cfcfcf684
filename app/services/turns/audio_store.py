"""The sound of voice turns in the database: recordings, and the pieces of spoken answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ClauseElement

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
        turn = _of(record)
        if record.attempt > 1:  # drop what an attempt left that failed
            yield [
                _FORGET_RECORDING(**turn),
                _FORGET_CLIPS(**turn),
                _STORE_HEARD(**_answer(record), heard_content=None),
            ]
        recording = voice.recording
        kept = _KEEP_RECORDING(
            workspace_id=record.workspace_id,
            turn_id=record.id,
            format=recording.format.value,
            duration_seconds=recording.duration_seconds,
            has_clips=voice.has_clips,
            data=recording.data,
            created_at=utc_now(),
        )
        yield [kept]

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
        turn = _of(record)
        if not self.kept_days:
            yield [_FORGET_RECORDING(**turn)]
        pieces = voice.pieces() if voice else ()
        if pieces:
            kept = [_KEEP_CLIP(**self._row(record, piece)) for piece in pieces]
            yield [_FORGET_CLIPS(**turn), *kept]
        if played_ms is not None:
            yield [_heard(record, content, pieces, played_ms)]

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
        if self.kept_days:
            yield [_PRUNE_RECORDINGS(before_=utc_now() - kept)]
        yield [_PRUNE_CLIPS(before_=utc_now() - max(kept, _TIMINGS_KEPT))]


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
    ((content,),), found = yield [_CONTENT(**_answer(record)), _PIECES(**_of(record))]
    pieces = [SpokenPiece(*row) for row in found]
    if pieces:
        yield [_heard(record, content, pieces, played_ms)]


def _heard(
    record: TurnRecord, content: str, pieces: Sequence[SpokenPiece], played_ms: int
) -> Statement:
    heard = heard_content(content, pieces, played_ms)
    return _STORE_HEARD(**_answer(record), heard_content=heard)


def _of(record: TurnRecord) -> dict[str, UUID]:
    return {"workspace_id_": record.workspace_id, "turn_id_": record.id}


def _answer(record: TurnRecord) -> dict[str, UUID]:
    return {"workspace_id_": record.workspace_id, "message_id_": record.message_id}


def _is_of(table: Table) -> ColumnElement[bool]:
    return and_(
        table.c.workspace_id == bindparam("workspace_id_"),
        table.c.turn_id == bindparam("turn_id_"),
    )


def _before(table: Table) -> ColumnElement[bool]:
    return table.c.created_at < bindparam("before_")


def _pieces(_dialect: Dialect) -> ClauseElement:
    return select(*_PIECE_COLUMNS).where(_is_of(_clips)).order_by(_clips.c.index)


_KEEP_RECORDING = Direct(lambda _: insert(_recordings).values(**named(*_recordings.c.keys())))
_FORGET_RECORDING = Direct(lambda _: delete(_recordings).where(_is_of(_recordings)))
_PRUNE_RECORDINGS = Direct(lambda _: delete(_recordings).where(_before(_recordings)))
_KEEP_CLIP = Direct(lambda _: insert(_clips).values(**named(*_clips.c.keys())))
_FORGET_CLIPS = Direct(lambda _: delete(_clips).where(_is_of(_clips)))
_PRUNE_CLIPS = Direct(lambda _: delete(_clips).where(_before(_clips)))
_PIECES = Direct(_pieces)
_CONTENT = Direct(lambda _: select(messages.c.content).where(is_message()))
_STORE_HEARD = Direct(
    lambda _: update(messages).where(is_message()).values(**named("heard_content"))
)

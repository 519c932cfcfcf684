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
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct, Program, Statement
from app.models import StoredRecording, utc_now
from app.services.ports import AudioFormat, Recording
from app.services.turns.heard import heard_content
from app.services.turns.loading import lock_session
from app.services.turns.records import TurnRecord
from app.services.turns.statements import audio_clips, is_message, messages, named, turns
from app.services.turns.voice_stages import SpokenPiece, VoiceStages

_recordings = cast("Table", StoredRecording.__table__)
_READ_AT_ONCE = 8
_PIECE_COLUMNS = tuple(
    audio_clips.c[name]
    for name in (
        "index",
        "text",
        "content_start",
        "content_end",
        "sample_rate_hz",
        "start_sample",
        "sample_count",
        "mp3",
    )
)
_TIMINGS_KEPT = timedelta(days=1)
"""Where no sound is kept: an answer may be interrupted for as long as it can be playing."""


@dataclass(slots=True)
class Heard:
    """How far somebody has heard an answer that another server speaks."""

    attempt: int = 0
    index: int = 0
    """The newest piece, of which `piece_bytes` were heard; it may still grow."""
    piece_bytes: int = 0
    byte_count: int = 0

    def take(self, index: int, mp3: bytes) -> bytes:
        """Return what of a piece is new."""
        new = mp3[self.piece_bytes :] if index == self.index else mp3
        self.index, self.piece_bytes = index, len(mp3)
        self.byte_count += len(new)
        return new


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

    def keeping(self, record: TurnRecord, pieces: Sequence[SpokenPiece]) -> Sequence[Statement]:
        """Return what stores the newest pieces, and whatever grew since it was stored."""
        if not pieces:
            return ()
        forgotten = _FORGET_CLIPS_FROM(**_of(record), index_=pieces[0].index)
        return (forgotten, *(_KEEP_CLIP(**self._row(record, piece)) for piece in pieces))

    def settle(
        self,
        record: TurnRecord,
        voice: VoiceStages | None,
        content: str,
        played_ms: int | None,
        stored_pieces: int,
    ) -> Program[None]:
        """Store what was spoken, and what of it was heard, just before the turn is settled.

        Of `stored_pieces`, which are in the database, the last may have grown. The session is
        locked first, as everybody does it. Raises `TurnLost`.
        """
        yield from lock_session(record, utc_now())
        turn = _of(record)
        if not self.kept_days:
            yield [_FORGET_RECORDING(**turn)]
        pieces = voice.pieces() if voice else ()
        if pieces:
            yield self.keeping(record, pieces[max(0, stored_pieces - 1) :])
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
        .where(audio_clips.c.workspace_id == workspace_id, audio_clips.c.turn_id == turn_id)
        .order_by(audio_clips.c.index)
    )
    return [SpokenPiece(*row) for row in rows]


async def read_on(
    connection: AsyncConnection, workspace_id: UUID, turn_id: UUID, heard: Heard
) -> tuple[int, list[tuple[int, bytes]]]:
    """Return the turn's attempt, and the next pieces by their index; all of each."""
    size = func.length(audio_clips.c.mp3)
    is_new = or_(
        and_(audio_clips.c.index > heard.index, size > 0),
        and_(audio_clips.c.index == heard.index, size > heard.piece_bytes),
    )
    of_turn = and_(
        audio_clips.c.workspace_id == turns.c.workspace_id, audio_clips.c.turn_id == turns.c.id
    )
    found = await connection.execute(
        select(turns.c.attempt, audio_clips.c.index, audio_clips.c.mp3)
        .select_from(turns.outerjoin(audio_clips, and_(of_turn, is_new)))
        .where(turns.c.workspace_id == workspace_id, turns.c.id == turn_id)
        .order_by(audio_clips.c.index)
        .limit(_READ_AT_ONCE)
    )
    rows = found.all()
    attempt = rows[0].attempt if rows else 0
    return attempt, [(index, mp3) for _, index, mp3 in rows if mp3]


def forgetting(record: TurnRecord) -> Statement:
    """Return what drops what an attempt has spoken, for the next one speaks anew."""
    return _FORGET_CLIPS(**_of(record))


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
    return select(*_PIECE_COLUMNS).where(_is_of(audio_clips)).order_by(audio_clips.c.index)


_KEEP_RECORDING = Direct(lambda _: insert(_recordings).values(**named(*_recordings.c.keys())))
_FORGET_RECORDING = Direct(lambda _: delete(_recordings).where(_is_of(_recordings)))
_PRUNE_RECORDINGS = Direct(lambda _: delete(_recordings).where(_before(_recordings)))
_KEEP_CLIP = Direct(lambda _: insert(audio_clips).values(**named(*audio_clips.c.keys())))
_FORGET_CLIPS = Direct(lambda _: delete(audio_clips).where(_is_of(audio_clips)))
_FORGET_CLIPS_FROM = Direct(
    lambda _: delete(audio_clips).where(
        _is_of(audio_clips), audio_clips.c.index >= bindparam("index_")
    )
)
_PRUNE_CLIPS = Direct(lambda _: delete(audio_clips).where(_before(audio_clips)))
_PIECES = Direct(_pieces)
_CONTENT = Direct(lambda _: select(messages.c.content).where(is_message()))
_STORE_HEARD = Direct(
    lambda _: update(messages).where(is_message()).values(**named("heard_content"))
)

"""Store the audio of voice turns: recordings, and the pieces of synthesized answers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
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

from app.core.database.statements import PreparedStatement, Statement
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import StoredRecording, utc_now
from app.services.ports import AudioFormat, Recording
from app.services.turns.context.heard_text import heard_text
from app.services.turns.context.spoken_text import spoken_text
from app.services.turns.errors import turn_lost
from app.services.turns.records import TurnRecord
from app.services.turns.storage.tables import (
    audio_clips,
    is_message,
    messages,
    same_named_parameters,
    turns,
)
from app.services.turns.storage.turn_rows import hold_turn_stmt, lock_session
from app.services.turns.voice_port import SpokenPiece, VoiceStages

_recordings = cast("Table", StoredRecording.__table__)
_PIECES_PER_READ = 8
_PIECE_COLUMNS = tuple(audio_clips.c[field.name] for field in fields(SpokenPiece))
"""In the order of the fields of `SpokenPiece`, which a row of them is made into."""
_TIMINGS_KEPT = timedelta(days=1)
"""Retention of piece timings without audio: an answer can be interrupted while it is played."""


@dataclass(slots=True)
class StreamPosition:
    """The read position of a subscriber in the audio that another server stores."""

    attempt: int = 0
    index: int = 0
    """Index of the last piece, of which `piece_bytes` were read; it may still grow."""
    piece_bytes: int = 0
    byte_count: int = 0

    def take(self, index: int, mp3: bytes) -> bytes:
        """Advance by a piece; return its bytes that were not read before."""
        new = mp3[self.piece_bytes :] if index == self.index else mp3
        self.index, self.piece_bytes = index, len(mp3)
        self.byte_count += len(new)
        return new


@dataclass(frozen=True, slots=True)
class AudioStore:
    """Stores recordings and audio pieces, and deletes them after `kept_days`.

    With `kept_days` 0, recordings are deleted at settlement, and pieces have no audio.
    """

    kept_days: int = 7

    def store_recording(self, record: TurnRecord, voice: VoiceStages) -> TransactionScript[None]:
        """Insert the recording, if any, in the transaction that accepts the turn."""
        turn = _turn_key(record)
        if record.attempt > 1:  # delete the audio of a failed attempt
            yield [
                _DELETE_RECORDING(**turn),
                _DELETE_CLIPS(**turn),
                _UPDATE_HEARD(**_answer_key(record), heard_content=None),
            ]
        recording = voice.recording
        if recording is None:
            return
        stored = _INSERT_RECORDING(
            workspace_id=record.workspace_id,
            turn_id=record.id,
            format=recording.format.value,
            duration_seconds=recording.duration_seconds,
            has_clips=voice.has_clips,
            data=recording.data,
            created_at=utc_now(),
        )
        yield [stored]

    def insert_pieces_stmts(
        self, record: TurnRecord, pieces: Sequence[SpokenPiece]
    ) -> Sequence[Statement]:
        """Return the statements that store `pieces` and replace those that have grown."""
        if not pieces:
            return ()
        forgotten = _DELETE_CLIPS_FROM(**_turn_key(record), index_=pieces[0].index)
        return (forgotten, *(_INSERT_CLIP(**self._row(record, piece)) for piece in pieces))

    def settle(
        self,
        record: TurnRecord,
        voice: VoiceStages | None,
        heard_content: str | None,
        stored_pieces: int,
    ) -> TransactionScript[None]:
        """Store the remaining pieces and the played text, before the turn is settled.

        `stored_pieces` are already stored; the last of them may have grown. Locks the session
        first, as every transaction script of turns does. Raises `TurnLost`.
        """
        yield from lock_session(record, utc_now())
        turn = _turn_key(record)
        if not self.kept_days:
            yield [_DELETE_RECORDING(**turn)]
        pieces = voice.pieces() if voice else ()
        if pieces:
            held = yield from fetch_one(hold_turn_stmt(record))
            if not held:  # a newer attempt stores its own pieces
                raise turn_lost()
            yield self.insert_pieces_stmts(record, pieces[max(0, stored_pieces - 1) :])
        if heard_content is not None:
            yield [_UPDATE_HEARD(**_answer_key(record), heard_content=heard_content)]

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

    def prune(self) -> TransactionScript[None]:
        """Delete audio that is older than `kept_days`."""
        retention = timedelta(days=self.kept_days)
        if self.kept_days:
            yield [_PRUNE_RECORDINGS(before_=utc_now() - retention)]
        yield [_PRUNE_CLIPS(before_=utc_now() - max(retention, _TIMINGS_KEPT))]


async def read_recording(
    connection: AsyncConnection, workspace_id: UUID, turn_id: UUID
) -> tuple[Recording, bool] | None:
    """Load a turn's recording, and whether its events include clips; `None` if not stored."""
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
    """Load the audio pieces of a turn, in order."""
    rows = await connection.execute(
        select(*_PIECE_COLUMNS)
        .where(audio_clips.c.workspace_id == workspace_id, audio_clips.c.turn_id == turn_id)
        .order_by(audio_clips.c.index)
    )
    return [SpokenPiece(*row) for row in rows]


async def read_pieces_after(
    connection: AsyncConnection, workspace_id: UUID, turn_id: UUID, position: StreamPosition
) -> tuple[int, list[tuple[int, bytes]]]:
    """Load the turn's attempt, and up to 8 pieces with bytes after `position`, by index."""
    size = func.length(audio_clips.c.mp3)
    is_new = or_(
        and_(audio_clips.c.index > position.index, size > 0),
        and_(audio_clips.c.index == position.index, size > position.piece_bytes),
    )
    of_turn = and_(
        audio_clips.c.workspace_id == turns.c.workspace_id, audio_clips.c.turn_id == turns.c.id
    )
    rows = await connection.execute(
        select(turns.c.attempt, audio_clips.c.index, audio_clips.c.mp3)
        .select_from(turns.outerjoin(audio_clips, and_(of_turn, is_new)))
        .where(turns.c.workspace_id == workspace_id, turns.c.id == turn_id)
        .order_by(audio_clips.c.index)
        .limit(_PIECES_PER_READ)
    )
    rows = rows.all()
    attempt = rows[0].attempt if rows else 0
    return attempt, [(index, mp3) for _, index, mp3 in rows if mp3]


def discard_pieces_stmt(record: TurnRecord) -> Statement:
    """Return the statement that deletes an attempt's pieces, before the next attempt."""
    return _DELETE_CLIPS(**_turn_key(record))


def truncate_to_heard(record: TurnRecord, played_ms: int) -> TransactionScript[None]:
    """Store the played text of a settled answer. Raises `TurnLost`."""
    yield from lock_session(record, utc_now())
    ((content,),), piece_rows = yield [
        _CONTENT(**_answer_key(record)),
        _PIECES(**_turn_key(record)),
    ]
    pieces = [SpokenPiece(*row) for row in piece_rows]
    if pieces:
        yield [_heard_text_stmts(record, content, pieces, played_ms)]


def _heard_text_stmts(
    record: TurnRecord, content: str, pieces: Sequence[SpokenPiece], played_ms: int
) -> Statement:
    spoken_content = spoken_text(record, content)
    heard_content: str | None = ""
    if spoken_content is not None:
        heard_content = heard_text(spoken_content, pieces, played_ms)
    return _UPDATE_HEARD(**_answer_key(record), heard_content=heard_content)


def _turn_key(record: TurnRecord) -> dict[str, UUID]:
    return {"workspace_id_": record.workspace_id, "turn_id_": record.id}


def _answer_key(record: TurnRecord) -> dict[str, UUID]:
    return {"workspace_id_": record.workspace_id, "message_id_": record.message_id}


def _is_of_turn(table: Table) -> ColumnElement[bool]:
    return and_(
        table.c.workspace_id == bindparam("workspace_id_"),
        table.c.turn_id == bindparam("turn_id_"),
    )


def _is_older(table: Table) -> ColumnElement[bool]:
    return table.c.created_at < bindparam("before_")


def _pieces_stmt(_dialect: Dialect) -> ClauseElement:
    return select(*_PIECE_COLUMNS).where(_is_of_turn(audio_clips)).order_by(audio_clips.c.index)


_INSERT_RECORDING = PreparedStatement(
    lambda _: insert(_recordings).values(**same_named_parameters(*_recordings.c.keys()))
)
_DELETE_RECORDING = PreparedStatement(lambda _: delete(_recordings).where(_is_of_turn(_recordings)))
_PRUNE_RECORDINGS = PreparedStatement(lambda _: delete(_recordings).where(_is_older(_recordings)))
_INSERT_CLIP = PreparedStatement(
    lambda _: insert(audio_clips).values(**same_named_parameters(*audio_clips.c.keys()))
)
_DELETE_CLIPS = PreparedStatement(lambda _: delete(audio_clips).where(_is_of_turn(audio_clips)))
_DELETE_CLIPS_FROM = PreparedStatement(
    lambda _: delete(audio_clips).where(
        _is_of_turn(audio_clips), audio_clips.c.index >= bindparam("index_")
    )
)
_PRUNE_CLIPS = PreparedStatement(lambda _: delete(audio_clips).where(_is_older(audio_clips)))
_PIECES = PreparedStatement(_pieces_stmt)
_CONTENT = PreparedStatement(lambda _: select(messages.c.content).where(is_message()))
_UPDATE_HEARD = PreparedStatement(
    lambda _: update(messages).where(is_message()).values(**same_named_parameters("heard_content"))
)

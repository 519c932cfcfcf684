"""Stream the MP3 of a turn while it is synthesized: from memory, or from the database.

The audio is in memory on the server that runs the turn; other servers poll the database for it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from app.core.database import Database
from app.services.turns import LiveTurn, TurnEngine
from app.services.turns.errors import ServerDraining, TurnInterrupted
from app.services.turns.storage import audio_store
from app.services.voice.turn import VoiceTurn

_POLL_SECONDS = 1.0
"""Interval at which a stream checks for new audio when no event wakes it."""


async def stream_turn_audio(
    turns: TurnEngine, database: Database, turn: LiveTurn
) -> AsyncGenerator[bytes]:
    """Yield a turn's MP3 from its beginning, as it is synthesized, until the turn is settled.

    Yields nothing if the turn was already settled and ran on another server. If audio was yielded
    or the turn ran here, raises the error that the turn ended with. Raises `TurnInterrupted` if a
    new attempt synthesizes the answer again, and `ServerDraining`.
    """
    await turns.refresh(turn)
    if turn.settled.is_set() and turn.voice is None:
        return
    position = audio_store.StreamPosition()
    while True:
        local = _local_voice(turns, turn)
        if local and position.byte_count:
            raise _restarted_answer()
        chunks = (
            _stream_local(turns, *local)
            if local
            else _stream_remote(turns, database, turn, position)
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
        if (local[0] if local else turn).settled.is_set():
            return


def _local_voice(turns: TurnEngine, turn: LiveTurn) -> tuple[LiveTurn, VoiceTurn] | None:
    running = turns.current(turn)
    voice = running.voice
    if isinstance(voice, VoiceTurn) and (turns.runs_here(running) or voice.mp3):
        return running, voice
    return None


async def _stream_local(
    turns: TurnEngine, turn: LiveTurn, voice: VoiceTurn
) -> AsyncGenerator[bytes]:
    """Yield audio until the turn is settled, or is lost before any audio was yielded."""
    sent = 0
    while True:
        changed = voice.changed
        while sent < len(voice.mp3):
            sent += 1
            yield voice.mp3[sent - 1]
        if turn.settled.is_set():
            turn.reply()
            return
        if not turns.runs_here(turn):
            if sent:
                raise _restarted_answer()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):  # costs half as much as anyio's scope
                await changed.wait()


async def _stream_remote(
    turns: TurnEngine, database: Database, turn: LiveTurn, position: audio_store.StreamPosition
) -> AsyncGenerator[bytes]:
    """Yield stored audio until the turn is settled, or this server takes the turn over."""
    with turns.watching(turn):
        while not _local_voice(turns, turn):
            changed = turn.log.changed
            await turns.refresh(turn)
            is_over = turn.settled.is_set()  # then the read below returns all remaining audio
            while mp3 := await _read_pieces_after(database, turn, position):
                yield mp3
            if is_over:
                if position.byte_count or turn.voice:
                    turn.reply()
                return
            if turns.is_draining and not turns.holds(turn):
                raise ServerDraining(
                    "This server is shutting down: request the audio again.", retry_after_seconds=1
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await changed.wait()


async def _read_pieces_after(
    database: Database, turn: LiveTurn, position: audio_store.StreamPosition
) -> bytes:
    """Return the MP3 that another server has stored since `position`, and advance it."""
    async with database.reading() as db:
        attempt, pieces = await audio_store.read_pieces_after(
            await db.connection(), turn.record.workspace_id, turn.record.id, position
        )
    if position.byte_count and attempt != position.attempt:
        raise _restarted_answer()
    position.attempt = attempt
    return b"".join(position.take(index, mp3) for index, mp3 in pieces)


def _restarted_answer() -> TurnInterrupted:
    return TurnInterrupted(
        "The server that ran the turn stopped, and the turn was restarted: request the audio again."
    )

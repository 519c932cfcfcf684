"""Hearing a turn while it is spoken: from memory where that is here, else from the database."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from app.core.database import Database
from app.services.turns import LiveTurn, TurnEngine, audio_store
from app.services.turns.errors import ServerDraining, TurnInterrupted
from app.services.voice.turn import VoiceTurn

_LOOK_SECONDS = 1.0
"""How often a listener looks up by itself, should nothing wake it."""


async def live_sound(
    turns: TurnEngine, database: Database, turn: LiveTurn
) -> AsyncGenerator[bytes]:
    """Yield a turn's MP3 from its beginning, as it is spoken; ends once the turn is settled.

    Yields nothing of a turn that was settled before and ran elsewhere. Raises the error that the
    turn ended with, if it was heard or ran here; `TurnInterrupted` where another attempt began
    that speaks anew, and `ServerDraining`.
    """
    await turns.look_up(turn)
    if turn.settled.is_set() and turn.voice is None:
        return
    heard = audio_store.Heard()
    while True:
        here = _speaking_here(turns, turn)
        if here and heard.byte_count:
            raise _spoken_anew()
        chunks = (
            _spoken_here(turns, *here) if here else _spoken_elsewhere(turns, database, turn, heard)
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
        if (here[0] if here else turn).settled.is_set():
            return


def _speaking_here(turns: TurnEngine, turn: LiveTurn) -> tuple[LiveTurn, VoiceTurn] | None:
    running = turns.newest(turn)
    voice = running.voice
    if isinstance(voice, VoiceTurn) and (turns.runs_here(running) or voice.mp3):
        return running, voice
    return None


async def _spoken_here(
    turns: TurnEngine, turn: LiveTurn, voice: VoiceTurn
) -> AsyncGenerator[bytes]:
    """Yield until the turn is settled, or lost before anything of it was heard."""
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
                raise _spoken_anew()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):  # half of what a scope costs
                await changed.wait()


async def _spoken_elsewhere(
    turns: TurnEngine, database: Database, turn: LiveTurn, heard: audio_store.Heard
) -> AsyncGenerator[bytes]:
    """Yield until the turn is settled, or runs here."""
    with turns.watching(turn):
        while not _speaking_here(turns, turn):
            changed = turn.log.changed
            await turns.look_up(turn)
            is_over = turn.settled.is_set()  # then what is read below is all
            while mp3 := await _read_on(database, turn, heard):
                yield mp3
            if is_over:
                if heard.byte_count or turn.voice:
                    turn.reply()
                return
            if turns.is_draining and not turns.holds(turn):
                raise ServerDraining("This server is shutting down.", retry_after_seconds=1)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await changed.wait()


async def _read_on(database: Database, turn: LiveTurn, heard: audio_store.Heard) -> bytes:
    """Return what another server has stored since, and count it as heard."""
    async with database.reading() as db:
        attempt, pieces = await audio_store.read_on(
            await db.connection(), turn.record.workspace_id, turn.record.id, heard
        )
    if heard.byte_count and attempt != heard.attempt:
        raise _spoken_anew()
    heard.attempt = attempt
    return b"".join(heard.take(index, mp3) for index, mp3 in pieces)


def _spoken_anew() -> TurnInterrupted:
    return TurnInterrupted(
        "The server that spoke stopped; the answer is spoken from its beginning."
    )

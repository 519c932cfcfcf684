"""Run a turn between acceptance and settlement: transcribe, call the model, synthesize."""

import asyncio
import logging
from dataclasses import replace

import anyio

from app.core.database.retries import retry_while_unavailable
from app.core.errors import AppError
from app.models import Modality
from app.services.ports import Transcript
from app.services.turns.errors import InternalError, TurnInterrupted, TurnTimeout
from app.services.turns.events import InputTranscriptDelta, InputTranscriptDone
from app.services.turns.execution.agent_loop import TurnRuntime, answer
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.tool_execution import ActionsPending
from app.services.turns.records import Outcome, TurnRecord
from app.services.turns.storage import audio_store, settlement
from app.services.turns.voice_port import VoiceStages

logger = logging.getLogger(__name__)

_STORE_TRANSCRIPT_SECONDS = 60
_DEADLINE_SECONDS = 300


async def run_turn(live: LiveTurn, runtime: TurnRuntime) -> Outcome:
    """Run the turn and return its outcome; raises only the cancellation of its task."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + _DEADLINE_SECONDS
    live.scope.deadline = deadline
    try:
        with live.scope:
            return await _run(live, runtime)
    except AppError as error:
        return live.failed_outcome(error)
    except Exception:  # every turn must end with an outcome
        logger.exception("turn failed")
        return live.failed_outcome(InternalError("The server failed to answer; its log says why."))
    if clock() >= deadline:
        return live.failed_outcome(TurnTimeout("The turn was not finished in time."))
    return live.cancelled_outcome()


async def _run(live: LiveTurn, runtime: TurnRuntime) -> Outcome:
    try:
        if live.record.has_sound:
            live.voice = live.voice or await _restore_voice(live, runtime)
            return await _run_voice_turn(live, runtime)
        await answer(live, runtime)
    except ActionsPending:
        return live.waiting_outcome()
    return live.completed_outcome()


async def _restore_voice(live: LiveTurn, runtime: TurnRuntime) -> VoiceStages | None:
    voices = runtime.voices
    if voices is None:
        return None
    speaks = live.record.output is Modality.VOICE
    if live.record.modality is Modality.TEXT:
        # Nothing says whether clips were asked for: a stream without them would lack the sound.
        return voices.make(None, has_clips=True, speaks=speaks)
    async with runtime.database.reading() as db:
        stored = await audio_store.read_recording(
            await db.connection(), live.record.workspace_id, live.record.id
        )
    if stored is None:
        return None
    recording, has_clips = stored
    return voices.make(recording, has_clips=has_clips, speaks=speaks)


async def _run_voice_turn(live: LiveTurn, runtime: TurnRuntime) -> Outcome:
    voice = live.voice
    if voice is None:
        raise TurnInterrupted("The recording is not on this server any more; send it again.")
    if voice.recording is None:
        speech_error = await _answer_aloud(live, voice, runtime)
        return live.completed_outcome(speech_error)
    transcript = _stored_transcript(live.record) or await _transcribe(live, voice)
    live.record = _with_question(live.record, transcript.text)
    live.log.emit(InputTranscriptDone(transcript.text, transcript.language))
    error: AppError | None = None
    speech_error = None
    waits = False

    async def store_question() -> None:
        nonlocal error
        try:
            await retry_while_unavailable(
                lambda: runtime.database.run(
                    settlement.store_transcript, live.record, transcript.text
                ),
                _STORE_TRANSCRIPT_SECONDS,
            )
        except AppError as storage_error:
            error = storage_error
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(store_question)
        try:
            speech_error = await _answer_aloud(live, voice, runtime)
        except ActionsPending:
            waits = True
        except AppError as chat_error:
            error = error or chat_error
            group.cancel_scope.cancel()
    if error:
        raise error
    return live.waiting_outcome() if waits else live.completed_outcome(speech_error)


def _stored_transcript(record: TurnRecord) -> Transcript | None:
    """Return the transcript of a turn that goes on after an action."""
    words = record.history[-1].content
    return Transcript(words) if record.steps and words else None


async def _answer_aloud(
    live: LiveTurn, voice: VoiceStages, runtime: TurnRuntime
) -> AppError | None:
    """Stream the model's answer into `live`, and speak it if the turn does.

    Returns the error of the speech, if it failed. Raises `ProviderError` or `MessageTooLong`.
    """
    if not voice.speaks:
        await answer(live, runtime)
        return None
    error: AppError | ActionsPending | None = None
    speech_error: AppError | None = None

    async def speak() -> None:
        nonlocal speech_error
        try:
            await voice.speak(live.record.persona, receive, live.log.emit, live.mark)
        except AppError as failure:  # the written answer is still completed
            speech_error = failure
        finally:
            live.progress.speech_out_characters = voice.spoken_characters
            receive.close()

    def say(delta: str) -> None:
        if send.statistics().open_receive_streams:
            send.send_nowait(delta)

    send, receive = anyio.create_memory_object_stream[str](float("inf"))
    async with anyio.create_task_group() as group:
        group.start_soon(speak)
        try:
            await answer(live, runtime, say)
        except ActionsPending as pending:  # what was said so far is spoken
            error = pending
        except AppError as chat_error:
            error = chat_error
            group.cancel_scope.cancel()
        finally:
            send.close()
    if error:
        raise error
    return speech_error


async def _transcribe(live: LiveTurn, voice: VoiceStages) -> Transcript:
    try:
        transcript = await voice.transcribe(
            live.record.persona,
            lambda words: live.log.emit(InputTranscriptDelta(words)),
        )
    finally:
        live.progress.speech_in_seconds = round(voice.heard_seconds, 2) or None
    live.mark("stt_ms")
    return transcript


def _with_question(record: TurnRecord, words: str) -> TurnRecord:
    question = record.history[-1]._replace(content=words)
    return replace(record, history=(*record.history[:-1], question))

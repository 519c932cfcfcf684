"""From a question to an answer: what runs between acceptance and settlement."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import anyio

from app.core.database import Database
from app.core.errors import AppError
from app.models import Modality
from app.services.ports import (
    ChatModel,
    ChatRequest,
    ProviderError,
    TextDelta,
    Transcript,
    UpstreamIncomplete,
)
from app.services.turns import audio_store, settlement
from app.services.turns.errors import InternalError, TurnInterrupted, TurnTimeout
from app.services.turns.events import EventType
from app.services.turns.live import LiveTurn
from app.services.turns.prompt import build_prompt
from app.services.turns.records import Outcome, TurnRecord, Usage
from app.services.turns.voice_stages import VoiceMaker, VoiceStages

logger = logging.getLogger(__name__)

_DEADLINE_SECONDS = {Modality.TEXT: 120, Modality.VOICE: 300}


async def answer(
    live: LiveTurn,
    chat_model: ChatModel,
    database: Database,
    voices: VoiceMaker | None,
) -> Outcome:
    """Run the turn to its end; nothing is raised but the server's own cancellation.

    `voices` makes the stages of a voice turn that another server, or an earlier run, accepted.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + _DEADLINE_SECONDS[live.record.modality]
    live.scope.deadline = deadline
    try:
        with live.scope:
            if live.record.modality is Modality.VOICE:
                live.voice = live.voice or await _bring_voice(live, database, voices)
                return await _answer_by_voice(live, chat_model, database)
            await _chat(live, chat_model)
            return live.completed()
    except AppError as error:
        return live.failed(error)
    except Exception:  # whatever it is, the turn must end
        logger.exception("turn %s failed", live.record.id)
        return live.failed(InternalError("The server failed to answer; its log says why."))
    if clock() >= deadline:
        return live.failed(TurnTimeout("The turn was not finished in time."))
    return live.cancelled()


async def _bring_voice(
    live: LiveTurn, database: Database, voices: VoiceMaker | None
) -> VoiceStages | None:
    if voices is None:
        return None
    async with database.reading() as db:
        found = await audio_store.read_recording(
            await db.connection(), live.record.workspace_id, live.record.id
        )
    if found is None:
        return None
    recording, has_clips = found
    return voices.make(recording, has_clips=has_clips)


async def _chat(
    live: LiveTurn, chat_model: ChatModel, on_delta: Callable[[str], None] | None = None
) -> None:
    """Ask the model; the answer grows in `live`. Raises `ProviderError`."""
    record, progress, persona = live.record, live.progress, live.record.persona
    request = ChatRequest(
        messages=build_prompt(
            persona.system_prompt,
            record.history,
            context_tokens=persona.context_tokens or chat_model.context_tokens,
            max_output_tokens=persona.max_output_tokens,
        ),
        model=persona.model,
        temperature=persona.temperature,
        max_output_tokens=persona.max_output_tokens,
    )
    progress.prompt, progress.model = request.messages, persona.model
    async with aclosing(chat_model.stream(request)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, TextDelta):
                if not progress.text:
                    live.mark("first_token_ms")
                live.say(chunk.text)
                if on_delta:
                    on_delta(chunk.text)
            else:
                progress.finish_reason = chunk.finish_reason.value
                progress.model = chunk.model
                progress.usage = Usage(
                    chunk.prompt_tokens, chunk.cached_tokens, chunk.completion_tokens
                )
    if not progress.text:
        raise UpstreamIncomplete("The AI provider's answer was empty.")


async def _answer_by_voice(live: LiveTurn, chat_model: ChatModel, database: Database) -> Outcome:
    voice, persona = live.voice, live.record.persona
    if voice is None:
        raise TurnInterrupted("The recording is not on this server any more; send it again.")
    transcript = await _hear(live, voice)
    live.record = _with_question(live.record, transcript.text)
    heard = {"text": transcript.text, "language": transcript.language}
    live.log.emit(EventType.TRANSCRIPT, heard)
    error: AppError | None = None
    speech_error: AppError | None = None

    async def store_question() -> None:
        nonlocal error
        try:
            await database.run(settlement.hear, live.record, transcript.text)
        except AppError as storage_error:
            error = storage_error
            group.cancel_scope.cancel()

    async def speak() -> None:
        nonlocal speech_error
        try:
            await voice.speak(
                persona, receive, lambda clip: live.log.emit(EventType.AUDIO, clip), live.mark
            )
        except AppError as failure:  # the answer is written to its end all the same
            speech_error = failure
        finally:
            live.progress.speech_out_characters = voice.spoken_characters
            receive.close()

    def say(delta: str) -> None:
        if send.statistics().open_receive_streams:
            send.send_nowait(delta)

    send, receive = anyio.create_memory_object_stream[str](float("inf"))
    async with anyio.create_task_group() as group:
        group.start_soon(store_question)
        group.start_soon(speak)
        try:
            await _chat(live, chat_model, say)
        except AppError as chat_error:
            error = error or chat_error
            group.cancel_scope.cancel()
        finally:
            send.close()
    if error:
        raise error
    return live.completed(speech_error)


async def _hear(live: LiveTurn, voice: VoiceStages) -> Transcript:
    live.progress.speech_in_seconds = round(voice.recording.duration_seconds, 2)
    try:
        transcript = await voice.hear(
            live.record.persona,
            lambda words: live.log.emit(EventType.TRANSCRIPT_DELTA, {"delta": words}),
        )
    except ProviderError:  # asked in vain, at no cost
        live.progress.speech_in_seconds = None
        raise
    live.mark("stt_ms")
    return transcript


def _with_question(record: TurnRecord, words: str) -> TurnRecord:
    question = record.history[-1]._replace(content=words)
    return replace(record, history=(*record.history[:-1], question))

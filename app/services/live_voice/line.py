"""One line: what its client sends, what that does, and what the client is told."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from app.models import Message
from app.services.audio.silero import Floats
from app.services.live_voice.answer import Answer
from app.services.live_voice.config import DetectionKind, LineConfig, ResponseSettings
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.events import (
    BufferCleared,
    BufferCommitted,
    ItemAdded,
    ItemDeleted,
    ItemRetrieved,
    ItemTruncated,
    LineEvent,
    ResponseState,
    SpeechStarted,
    SpeechStopped,
    TranscriptReady,
)
from app.services.live_voice.inputs import read_inputs, recording_of
from app.services.live_voice.items import Item, ItemKind, items_of, new_item_id
from app.services.live_voice.line_parts import LineParts
from app.services.live_voice.turn_detector import (
    SpeechBegan,
    SpeechEnded,
    SpeechLasted,
    SpeechPaused,
    SpeechResumed,
    TurnDetector,
)
from app.services.turn_end_port import TurnEndJudge
from app.services.voice.early_transcription import EarlyTranscription

_UNHEARD = 0
_FINISHED = 0.5
"""How likely it must be that a sentence is finished."""
logger = logging.getLogger(__name__)


class Line:
    """The state of one line. Calls raise `LiveInputRefused` where they cannot be served.

    One task makes the calls, and another one takes the events.
    """

    def __init__(self, parts: LineParts, config: LineConfig) -> None:
        self._parts = parts
        self._config = config
        judge = self._judge = parts.turn_end_judge
        self._detector = TurnDetector(config.detection, lambda: bool(judge and judge.is_ready))
        self._prepare_judge()
        self._tasks: TaskGroup | None = None
        self._answer: Answer | None = None
        """The newest one."""
        self._answers: dict[str, Answer] = {}
        """By the id of their message, to find what was heard of them."""
        self._speech_item = new_item_id()[1]
        """The id of the item that the next recording will be."""
        self._undecided = 0
        """How many recordings may have interrupted the answer, or have no words."""

    @property
    def session_id(self) -> str:
        """The id of the stored session, 32 hexadecimal digits."""
        return self._parts.session.id.hex

    @property
    def is_answering(self) -> bool:
        """True while a response is under way."""
        return self._answer is not None and not self._answer.is_over

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Serve the line during the block; afterwards turns go on without a listener."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                if self._answer:
                    self._answer.leave()
                tasks.cancel_scope.cancel()
                await self._parts.early.close()

    async def next_event(self) -> LineEvent:
        """Return the next event for the client; waits for one."""
        return await self._parts.outbox.get()

    def configure(self, config: LineConfig) -> None:
        """Change the settings, for what comes next."""
        self._config = config
        self._prepare_judge()
        self._detector.change(config.detection)
        self._require_decision()

    def _prepare_judge(self) -> None:
        detection = self._config.detection
        if self._judge and detection and detection.kind is DetectionKind.SEMANTIC:
            self._judge.prepare()

    def show(self, messages: Sequence[Message]) -> None:
        """Tell the client of stored messages that it has missed."""
        for message in messages:
            for item in items_of(message):
                self._add(item)

    # Sound

    def hear(self, samples: Floats) -> None:
        """Take the next sound of the client: 16 kHz mono, in -1 to 1."""
        for event in self._detector.hear(samples):
            match event:
                case SpeechBegan():
                    self._speech_began(event.at_ms)
                case SpeechLasted():
                    self._end_pause()
                case SpeechPaused():
                    self._speech_paused(event)
                case SpeechResumed():
                    self._parts.early.drop()
                case SpeechEnded():
                    self._tell(SpeechStopped(self._speech_item, event.at_ms))
                    self._speech_ended(event.pcm)

    def commit_audio(self) -> None:
        """Make an item of the sound so far; with turn detection its answer begins, too."""
        pcm = self._detector.take()
        self._parts.early.drop()
        self._end_pause()
        self._add_recording(self._begin_recording(pcm))

    def clear_audio(self) -> None:
        """Forget the sound so far."""
        self._detector.clear()
        self._parts.early.drop()
        self._require_decision()
        self._tell(BufferCleared())

    def _speech_began(self, at_ms: int) -> None:
        self._tell(SpeechStarted(self._speech_item, at_ms))
        detection, answer = self._config.detection, self._answer
        if not detection or not detection.interrupts_response or answer is None:
            return
        if not answer.state.is_spoken:
            self._interrupt("turn_detected")
        elif not answer.is_over or answer.playback.is_playing:
            answer.pause("turn_detected")

    def _speech_paused(self, pause: SpeechPaused) -> None:
        if self._judge and pause.asks is not None:
            self._start(partial(self._ask_judge, self._judge, pause.pcm, pause.asks))
        else:
            self._transcribe_early(pause.pcm)

    def _transcribe_early(self, pcm: bytes) -> None:
        if self._answer is None or not self._answer.may_be_unheard:
            self._parts.early.begin(pcm, self._start)

    async def _ask_judge(self, judge: TurnEndJudge, pcm: bytes, pause: int) -> None:
        """Let a model say whether somebody has finished; then what they said is transcribed."""
        is_finished: bool | None = None
        try:
            is_finished = await judge.probability_of_end(pcm) >= _FINISHED
        except Exception:
            logger.exception("nobody can tell whether a sentence is finished")
        is_current = self._detector.take_verdict(pause, is_finished=is_finished)
        if is_current and is_finished is not False:
            self._transcribe_early(pcm)

    def _end_pause(self) -> None:
        """Somebody has interrupted indeed: cancel the answer that is paused."""
        if self._answer and self._answer.is_paused:
            self._cancel(self._answer, self._answer.cut("turn_detected"))

    def _require_decision(self) -> None:
        """Cancel the answer that is paused where nobody speaks any more who could decide."""
        if not self._detector.is_speaking and not self._undecided:
            self._end_pause()

    def _speech_ended(self, pcm: bytes) -> None:
        """Answer what was said, unless it had no words: then a paused answer goes on.

        An answer that is paused waits until the words are known.
        """
        early = self._parts.early.take()
        item = self._begin_recording(pcm)
        if early and early.is_wordless:
            self._add_wordless(item, early)
        elif early and self._answer and self._answer.is_paused:
            self._undecided += 1
            self._start(partial(self._decide, item, early))
        else:
            self._end_pause()
            self._add_recording(item, early)

    async def _decide(self, item: Item, early: EarlyTranscription) -> None:
        await early.wait()
        self._undecided -= 1
        if early.is_wordless:
            self._add_wordless(item, early)
            return
        self._end_pause()
        if self._detector.is_speaking:  # what is said now belongs to it
            self._parts.early.drop_one(early)
            self._add_pending(item)
        else:
            self._add_recording(item, early)

    def _add_wordless(self, item: Item, early: EarlyTranscription) -> None:
        """Tell of a recording without words, which is neither stored nor answered."""
        self._parts.early.drop_one(early)
        seconds = recording_of(item.pcm).duration_seconds
        item.pcm, item.has_transcript = b"", True
        self._add(item)
        self._tell(TranscriptReady(item.id, "", round(seconds, 3)))
        is_speaking = self._detector.is_speaking or self._undecided
        if self._answer and self._answer.is_paused and not is_speaking:
            self._answer.resume()

    def _begin_recording(self, pcm: bytes) -> Item:
        """Return the item of what was said; the next recording is another one."""
        conversation = self._parts.conversation
        item = Item(self._speech_item, is_sound=True, has_transcript=False, pcm=pcm)
        conversation.require_room(item)
        self._speech_item = new_item_id()[1]
        self._tell(BufferCommitted(item.id, conversation.last_id))
        return item

    def _add_recording(self, item: Item, early: EarlyTranscription | None = None) -> None:
        detection, conversation = self._config.detection, self._parts.conversation
        if detection and detection.creates_response and not self.is_answering:
            conversation.pending.append(item)
            self._begin_answer(self._config.answers, None, early)
        else:
            if early:
                self._parts.early.drop_one(early)
            self._add_pending(item)

    def _add_pending(self, item: Item) -> None:
        self._add(item)
        self._parts.conversation.pending.append(item)

    # Items

    def create_item(self, item: Item, *, after: str | None = None) -> None:
        """Add an item of the client to the conversation."""
        if item.kind is ItemKind.OUTPUT:
            self._require_call(item.call_id)
        self._add(item, after=after)
        self._parts.conversation.pending.append(item)

    def retrieve_item(self, item_id: str) -> None:
        """Tell the client of an item again."""
        self._tell(ItemRetrieved(self._parts.conversation.find(item_id, "retrieve")))

    def delete_item(self, item_id: str) -> None:
        """Forget an item that is not answered yet; a spoken answer counts as not heard."""
        conversation = self._parts.conversation
        item = conversation.find(item_id, "delete")
        answer = self._answers.get(item_id)
        if answer and item.is_sound:
            self._cancel(answer, _UNHEARD)
        elif item not in conversation.pending:
            raise LiveInputRefused(
                "item_delete_not_supported",
                "Only items that no response has answered, and spoken answers, can be deleted.",
                "item_id",
            )
        conversation.remove(item)
        self._tell(ItemDeleted(item_id))

    def truncate_item(self, item_id: str, audio_end_ms: int) -> None:
        """Keep of a spoken answer what the client has played, whatever we have guessed."""
        self._parts.conversation.find(item_id, "truncate")
        answer = self._answers.get(item_id)
        if answer is None or not answer.state.is_spoken:
            raise LiveInputRefused(
                "item_truncate_invalid_item_id",
                "Only answers of this line that were spoken can be truncated.",
                "item_id",
            )
        sent_ms = answer.sent_ms(item_id)
        if audio_end_ms > sent_ms:
            raise LiveInputRefused(
                "invalid_value",
                f"Audio content of {sent_ms}ms is already shorter than {audio_end_ms}ms",
                "audio_end_ms",
            )
        truncated = ItemTruncated(item_id, audio_end_ms)
        played_ms = answer.truncate(item_id, audio_end_ms)
        if played_ms is None:
            self._tell(truncated)
        else:
            self._cancel(answer, played_ms, event=truncated)

    def _require_call(self, call_id: str) -> None:
        conversation = self._parts.conversation
        if not any(item.call_id == call_id for item in conversation.calls()):
            raise LiveInputRefused(
                "invalid_tool_call_id", f"Tool call ID '{call_id}' not found.", "item.call_id"
            )

    def _add(self, item: Item, *, after: str | None = None) -> None:
        before = self._parts.conversation.add(item, after=after)
        self._tell(ItemAdded(item, before))

    # Responses

    def create_response(
        self,
        request: ResponseSettings | None = None,
        metadata: dict[str, Any] | None = None,
        event_id: str | None = None,
    ) -> None:
        """Answer what was said since the last response; `request` instead of the line's own.

        Again with the same `event_id` in the same session, it is the same turn.
        """
        if self.is_answering and self._answer:
            raise LiveInputRefused(
                "conversation_already_has_active_response",
                f"LineConversation already has an active response in progress: "
                f"{self._answer.state.id}. Wait until the response is finished before creating a "
                f"new one.",
            )
        self._begin_answer(request or self._config.answers, metadata, event_id=event_id)

    def cancel_response(self, response_id: str | None = None) -> None:
        """End the response that is under way."""
        answer = self._answer
        self._end_pause()
        if answer is None or answer.is_over or response_id not in {None, answer.state.id}:
            raise LiveInputRefused(
                "response_cancel_not_active", "Cancellation failed: no active response found"
            )
        self._interrupt("client_cancelled")

    def _begin_answer(
        self,
        request: ResponseSettings,
        metadata: dict[str, Any] | None,
        early: EarlyTranscription | None = None,
        event_id: str | None = None,
    ) -> None:
        """Start a turn; `early` is the transcription of the newest recording."""
        self._end_pause()
        pending = self._parts.conversation.take_pending()
        recordings = sum(bool(item.pcm) for item in pending)
        turn_input = read_inputs(pending)
        turn_input.early, turn_input.event_id = early, event_id
        if recordings > 1:
            turn_input.drop_early()
        self._parts.early.bill(turn_input)
        state = ResponseState(
            "",
            request.is_spoken,
            metadata,
            max_output_tokens=request.max_output_tokens,
            voice=request.voice,
        )
        answer = Answer(self._parts, turn_input, request, state, self._answer)
        answer.on_item = lambda item: self._answers.setdefault(item, answer)
        self._answer = answer
        self._start(answer.run)

    def _interrupt(self, reason: str) -> None:
        """Stop the response that is under way, or is still played."""
        answer = self._answer
        if answer is None or (answer.is_over and not answer.playback.is_playing):
            return
        self._cancel(answer, answer.cut(reason))

    def _cancel(
        self, answer: Answer, played_ms: int | None, event: LineEvent | None = None
    ) -> None:
        async def cancel() -> None:
            await answer.cancel_turn(played_ms)
            if event:
                self._tell(event)

        self._start(cancel)

    def _start(self, work: Any) -> None:  # noqa: ANN401  # a coroutine function
        if self._tasks is None:
            raise RuntimeError("the line is not running")
        self._tasks.start_soon(work)

    def _tell(self, event: LineEvent) -> None:
        self._parts.outbox.put(event)

"""One response of a line: its turn, what the client is told of it, and its interruption."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from uuid import UUID

import anyio

from app.core.errors import AppError
from app.core.request_context import current_context, set_context
from app.models import Role, TurnStatus, new_id
from app.services.live_voice.config import ResponseSettings
from app.services.live_voice.errors import ActionNeeded
from app.services.live_voice.events import (
    AnswerBegan,
    AnswerEnded,
    AnswerSound,
    AnswerWords,
    CallMade,
    ItemAdded,
    ResponseBegan,
    ResponseEnded,
    ResponseState,
    TranscriptFailed,
    TranscriptPiece,
    TranscriptReady,
)
from app.services.live_voice.inputs import TurnInput, joined_recordings
from app.services.live_voice.items import Item, ItemKind, item_id
from app.services.live_voice.line_parts import LineParts
from app.services.live_voice.paced_sound import PacedSound
from app.services.live_voice.playback import Playback
from app.services.ports import ChatOptions, FinishReason
from app.services.turns import LiveTurn, TurnEvent, TurnOptions, TurnRequest, subscribe
from app.services.turns.context.heard_text import heard_text
from app.services.turns.errors import InternalError
from app.services.turns.events import (
    InputTranscriptDelta,
    InputTranscriptDone,
    OutputTextDelta,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnRequiresAction,
)
from app.services.turns.parts import REQUESTED, ToolCallPart
from app.services.voice.speech_order import Utterance

logger = logging.getLogger(__name__)


def _begin_request() -> None:
    """Count the times of a turn from here on, and not from the beginning of the line."""
    if context := current_context():
        own = replace(context, problem=None, received_at=time.monotonic(), provider_calls=[])
        set_context(own)


class Answer:
    """Fulfils `LiveSink`: the sound of the answer is handed on as it is synthesized."""

    def __init__(
        self,
        parts: LineParts,
        turn_input: TurnInput,
        request: ResponseSettings,
        state: ResponseState,
        earlier: "Answer | None",
    ) -> None:
        """`earlier` is the answer before, whose question is heard again if it was cut off."""
        self.state = state
        self.turn_input = turn_input
        self.live: LiveTurn | None = None
        self.is_over = False
        """True once the client was told that it is over."""
        self.on_item: Callable[[str], object] = str
        """Called with the id of its message, once that has begun."""
        self._parts = parts
        self._request = request
        self._earlier = earlier
        self._item: Item | None = None
        self._words_of_sound = ""
        self._last_number = 0
        self._is_announced = False
        self._is_cut = False
        self._started = anyio.Event()
        """Set once the turn is accepted, or refused."""
        self._sound = PacedSound()

    @property
    def playback(self) -> Playback:
        """How much of its sound the client has played."""
        return self._sound.playback

    @property
    def was_cut(self) -> bool:
        """True if it was interrupted."""
        return self._is_cut

    async def unheard(self) -> bytes:
        """Return the recording that it was asked with, where its words were never known."""
        if self.live is None or not self.turn_input.pcm or not self.was_cut:
            return b""
        words = await self._parts.session.words_of(self.live.record.user_message_id)
        return b"" if words else self.turn_input.pcm

    def leave(self) -> None:
        """Take note that nobody listens any more; the turn goes on at its own speed."""
        self._sound.stop()

    # The turn

    async def run(self) -> None:
        """Start the turn, and tell the client of it up to its end."""
        _begin_request()
        try:
            await self._start()
            if self.live:
                async with aclosing(
                    subscribe(self._parts.turns, self._parts.database, self.live, 0)
                ) as batches:
                    async for batch in batches:
                        self._take_all(batch)
        except AppError as error:
            self._fail(error)
        except Exception:
            logger.exception("a response of a line failed")
            self._fail(InternalError("The server failed to answer; its log says why."))

    async def _start(self) -> None:
        parts, turn_input = self._parts, self.turn_input
        try:
            async with parts.cancelling:  # so that the answer before is settled
                if self._earlier and turn_input.pcm:
                    first_half = await self._earlier.unheard()
                    turn_input.pcm = joined_recordings(first_half, turn_input.pcm)
                self._earlier = None
            await parts.admit()
            await parts.session.store(turn_input.before)
            recording = turn_input.recording
            stages = None
            if recording or self._request.is_spoken:
                stages = parts.voices.make(
                    recording, has_clips=False, speaks=self._request.is_spoken, sink=self
                )
            self.live = await parts.turns.start(
                parts.caller, parts.session.id, turn_input.text, stages, self._options()
            )
            self.state.id = f"resp_{self.live.record.id.hex}"
        finally:
            self._add_question()
            if turn_input.item:
                turn_input.item.pcm = b""
            self._started.set()
        self._announce()

    def _options(self) -> TurnOptions:
        turn_input, request = self.turn_input, self._request
        choice = ChatOptions(tool_choice=request.tool_choice) if request.tool_choice else None
        message_id = turn_input.message_id()
        return TurnOptions(
            request=TurnRequest(
                tools=request.tools,
                may_call_tools=request.may_call_tools,
                options=choice,
                system_prompt=request.instructions or None,
                max_output_tokens=request.max_output_tokens,
                voice=request.voice,
            ),
            parts=turn_input.parts,
            user_message_id=message_id if isinstance(message_id, UUID) else None,
        )

    def _add_question(self) -> None:
        """Tell the client of the recording that is answered, now that it is stored."""
        item, conversation = self.turn_input.item, self._parts.conversation
        if item and item.is_sound and not conversation.has(item):
            before = conversation.add(item)
            self._parts.outbox.put(ItemAdded(item, before))

    def _announce(self) -> None:
        if not self._is_announced:
            self._is_announced = True
            self._parts.outbox.put(ResponseBegan(self.state))
            if self._is_cut:
                self._end()

    # Its events

    def _take_all(self, events: Sequence[TurnEvent]) -> None:
        for event in events:
            if event.number > self._last_number:
                self._last_number = event.number
                self._take(event)

    def _take(self, event: TurnEvent) -> None:
        value, item = event.value, self.turn_input.item
        match value:
            case InputTranscriptDelta() if item:
                self._parts.outbox.put(TranscriptPiece(item.id, value.delta))
            case InputTranscriptDone() if item:
                self._take_transcript(item, value.text)
            case OutputTextDelta() if not self._request.is_spoken and not self.is_over:
                self._say(value.delta)
            case TurnCompleted() | TurnFailed() | TurnCancelled():
                self._finish()
            case TurnRequiresAction() if not self.is_over:
                self._fail(ActionNeeded("A tool call of this turn waits for somebody to act."))
            case _:
                pass

    def _take_transcript(self, item: Item, text: str) -> None:
        item.text, item.has_transcript = text, True
        recording = self.turn_input.recording
        seconds = recording.duration_seconds if recording else 0.0
        self._parts.outbox.put(TranscriptReady(item.id, text, round(seconds, 3)))

    def _say(self, words: str) -> None:
        item = self._item or self._begin_item()
        item.text += words
        self._parts.outbox.put(AnswerWords(self.state, item, words))

    def _begin_item(self) -> Item:
        live = self.live
        message_id = live.record.message_id if live else new_id()
        item = Item(item_id(message_id), role=Role.ASSISTANT, is_sound=self._request.is_spoken)
        item.is_running = True
        self._item = item
        self.on_item(item.id)
        self.state.items.append(item)
        before = self._parts.conversation.add(item)
        self._parts.outbox.put(AnswerBegan(self.state, item, before))
        return item

    def _finish(self) -> None:
        """Tell of the end of the turn, unless the client was told before."""
        live = self.live
        if self.is_over or live is None:
            return
        outcome = live.outcome
        error = outcome.error if outcome else None
        if outcome:
            self._say_rest(outcome.content)
        if outcome and outcome.status is TurnStatus.CANCELLED:
            self.state.status, self.state.reason = "cancelled", "client_cancelled"
        elif error:
            self._fail(error)
            return
        elif live.progress.finish_reason == FinishReason.LENGTH.value:
            self.state.status, self.state.reason = "incomplete", "max_output_tokens"
        else:
            self.state.status = "completed"
        self.state.usage = live.progress.usage
        self._end()

    def _say_rest(self, content: str) -> None:
        """Tell the end of the answer, which has no sound, such as code."""
        beginning = self._item.text if self._item else ""
        rest = content[len(beginning) :] if content.startswith(beginning) else ""
        if rest.strip():
            self._say(rest)

    def _fail(self, error: AppError) -> None:
        if self.is_over:
            return
        item = self.turn_input.item
        if self.turn_input.pcm and item and not item.text and self.live:
            self._parts.outbox.put(TranscriptFailed(item.id, error))
        self.state.status, self.state.error = "failed", error
        if not self._is_announced:
            self.state.id = f"resp_{new_id().hex}"
            self._announce()
        self._end()

    def _end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        outbox = self._parts.outbox
        if self._item:
            self._item.is_running = False
            self._item.is_complete = self.state.status == "completed"
            outbox.put(AnswerEnded(self.state, self._item))
        for call in self._calls():
            self.state.items.append(call)
            before = self._parts.conversation.add(call)
            outbox.put(CallMade(self.state, call, len(self.state.items) - 1, before))
        outbox.put(ResponseEnded(self.state))

    def _calls(self) -> Iterator[Item]:
        """Yield the calls of the client's tools that the answer ends with."""
        live = self.live
        if live is None or live.outcome is None or self.state.status != "completed":
            return
        for number, part in enumerate(live.outcome.parts or (), start=1):
            if isinstance(part, ToolCallPart) and part.status == REQUESTED:
                call = Item(
                    f"{item_id(live.record.message_id)}_{number}",
                    ItemKind.CALL,
                    Role.ASSISTANT,
                    call_id=part.call_id,
                    name=part.name,
                )
                call.arguments = part.arguments
                yield call

    # Its sound

    def begin(self, utterance: Utterance) -> None:
        """Fulfil `LiveSink.begin`."""
        self._words_of_sound += utterance.written

    async def sound(self, pcm: bytes, sample_rate_hz: int) -> None:
        """Fulfil `LiveSink.sound`; waits while four seconds are not played yet."""
        await self._started.wait()
        if self._is_silenced or self.live is None:
            return
        self._take_all(self.live.log.after(self._last_number))
        if self._words_of_sound:
            words, self._words_of_sound = self._words_of_sound, ""
            self._say(words)
        item = self._item
        if item is None:  # the silence of an answer that has nothing to say
            return
        async with aclosing(self._sound.blocks(pcm, sample_rate_hz)) as blocks:
            async for block in blocks:
                self._parts.outbox.put(AnswerSound(self.state, item, block))

    @property
    def _is_silenced(self) -> bool:
        return self.is_over or self._sound.is_stopped

    # Its interruption

    def cut(self, reason: str) -> int | None:
        """End the response at once; return the milliseconds that were played, `None` if written.

        The caller cancels the turn: see `cancel_turn`.
        """
        self._sound.take_back(self._parts.outbox.take_back_sound(self.state))
        played_ms = self.playback.played_ms if self._request.is_spoken else None
        self.playback.stop()
        self._is_cut = True
        self._sound.stop()
        if not self.is_over:
            self.state.status, self.state.reason = "cancelled", reason
            if self._is_announced:
                self._end()
        return played_ms

    async def cancel_turn(self, played_ms: int | None) -> None:
        """Cancel the turn; of a spoken answer the history keeps what was played."""
        await self._started.wait()
        if self.live is None:
            return
        with anyio.CancelScope(shield=True):  # also where the client leaves right behind it
            await self._cancel_started_turn(self.live, played_ms)

    async def _cancel_started_turn(self, live: LiveTurn, played_ms: int | None) -> None:
        async with self._parts.cancelling:
            try:
                await self._parts.turns.cancel(
                    self._parts.caller, live.record.id, played_ms=played_ms
                )
            except AppError as error:
                logger.warning("an answer could not be cut short: %s", error)
                return
            if self._item and played_ms is not None:
                self._item.text = self.heard_words(played_ms)

    def heard_words(self, played_ms: int) -> str:
        """Return the words of the first milliseconds of the sound."""
        live = self.live
        if live is None or live.voice is None or live.outcome is None:
            return self._item.text if self._item else ""
        content = live.outcome.content
        beginning = heard_text(content, live.voice.pieces(), played_ms)
        return content if beginning is None else beginning

"""One answer of a line: its turn, the responses that tell of it, and its interruption."""

import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import anyio

from app.core.errors import AppError
from app.models import TurnStatus, new_id
from app.services.live_voice.config import ResponseSettings
from app.services.live_voice.delivered_answer import DeliveredAnswer
from app.services.live_voice.errors import ActionNeeded
from app.services.live_voice.events import (
    ResponseState,
    TranscriptFailed,
    TranscriptPiece,
)
from app.services.live_voice.inputs import TurnInput
from app.services.live_voice.items import call_items, item_id
from app.services.live_voice.line_parts import (
    LineParts,
    add_question,
    begin_request,
    prepare_turn,
    tell_transcript,
)
from app.services.live_voice.paced_sound import PacedSound, SoundBlocks
from app.services.live_voice.playback import Playback
from app.services.live_voice.response import LiveResponse
from app.services.ports import FinishReason
from app.services.turns import LiveTurn, TurnEvent, subscribe
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
from app.services.voice.speech_order import Utterance

logger = logging.getLogger(__name__)


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
        self.turn_input = turn_input
        self.live: LiveTurn | None = None
        self.on_item: Callable[[str], object] = str
        """Called with the id of its message, once that has begun."""
        self.is_paused = False
        """True while somebody speaks who may have interrupted it, or only coughed."""
        self._parts = parts
        self._request = request
        self._earlier = earlier
        self._response = LiveResponse(parts.conversation, parts.outbox, state)
        self._delivered = DeliveredAnswer()
        self._blocks = SoundBlocks()
        self._words_of_sound = ""
        self._last_number = 0
        self._is_cut, self._has_left, self._has_told_calls = False, False, False
        self._failure: AppError | None = None
        """What went wrong during a pause."""
        self._started = anyio.Event()
        """Set once the turn is accepted, or refused."""
        self._released = anyio.Event()
        """Set at the end of the pause."""
        self._cancelled = anyio.Event()
        """Set once a turn that was cut is cancelled."""

    @property
    def state(self) -> ResponseState:
        """The last response."""
        return self._response.state

    @property
    def is_over(self) -> bool:
        """True once the client was told that it is over."""
        return self._response.is_over

    @property
    def playback(self) -> Playback:
        """How much of its response's sound the client has played."""
        return self._response.sound.playback

    @property
    def may_be_unheard(self) -> bool:
        """True where it was cut before the words of its recording were known here."""
        return self._is_cut and self.turn_input.is_unheard

    def leave(self) -> None:
        """Take note that nobody listens any more; the turn goes on at its own speed."""
        self._has_left = True
        self._response.sound.stop()
        self._released.set()

    # The turn

    async def run(self) -> None:
        """Start the turn, and tell the client of it up to its end."""
        begin_request()
        try:
            await self._start()
            if self.live:
                async with aclosing(
                    subscribe(self._parts.turns, self._parts.database, self.live, 0)
                ) as batches:
                    async for batch in batches:
                        self._take_all(batch)
                if self.live.is_replayed:  # by the `event_id`: its words are told again
                    await self._parts.turns.wait(self.live)
                    self._finish()
        except AppError as error:
            self._fail(error)
        except Exception:
            logger.exception("a response of a line failed")
            self._fail(InternalError("The server failed to answer; its log says why."))

    async def _start(self) -> None:
        parts, turn_input = self._parts, self.turn_input
        try:
            await self._join_earlier()
            options = await prepare_turn(parts, turn_input, self._request)
            recording = turn_input.recording
            stages = None
            if recording or self._request.is_spoken:
                stages = parts.voices.make(
                    recording,
                    has_clips=False,
                    speaks=self._request.is_spoken,
                    sink=self,
                    early=turn_input.early,
                    vain_seconds=turn_input.vain_seconds,
                )
            self.live = await parts.turns.start(
                parts.caller, parts.session.id, turn_input.text, stages, options
            )
            self.state.id = f"resp_{self.live.record.id.hex}"
            parts.session.set_language(self.live.record.persona.language)
        finally:
            if self.live is None:
                parts.early.take_back(turn_input)
            add_question(parts, turn_input)
            if turn_input.item:
                turn_input.item.pcm = b""
            self._started.set()
        self._response.announce()

    async def _join_earlier(self) -> None:
        """Wait until the answer before is settled; take over its question, if that was unheard."""
        earlier, self._earlier = self._earlier, None
        if earlier:
            await earlier.wait_until_cancelled()
        async with self._parts.cancelling:
            if earlier and earlier.live and earlier.may_be_unheard and self.turn_input.pcm:
                question = earlier.live.record.user_message_id
                if not await self._parts.session.words_of(question):
                    self.turn_input.put_before(earlier.turn_input.pcm)

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
                tell_transcript(self._parts, self.turn_input, item, value.text)
            case OutputTextDelta() if not self._request.is_spoken and not self.is_over:
                self._say(value.delta)
            case TurnCompleted() | TurnFailed() | TurnCancelled():
                self._finish()
            case TurnRequiresAction():
                self._fail(ActionNeeded("A tool call of this turn waits for somebody to act."))
            case _:
                pass

    def _say(self, words: str) -> None:
        response = self._response
        if response.item is None:
            message_id = self.live.record.message_id if self.live else new_id()
            number = self._delivered.response_number
            suffix = f"_r{number}" if number > 1 else ""
            name = item_id(message_id) + suffix
            self.on_item(name)
            response.begin_item(name)
        self._delivered.words += words
        response.say(words)

    def _finish(self) -> None:
        """Tell of the end of the turn, unless the client was told before, or in a pause."""
        live = self.live
        outcome = live.outcome if live else None
        is_elsewhere = live and live.is_replayed and outcome is None
        if self.is_paused or self.is_over or live is None or is_elsewhere:
            return
        error = outcome.error if outcome else None
        if outcome:
            self._say_rest(outcome.content)
        state = self.state
        if outcome and outcome.status is TurnStatus.CANCELLED:
            state.status, state.reason = "cancelled", "client_cancelled"
        elif error:
            self._fail(error)
            return
        elif live.progress.finish_reason == FinishReason.LENGTH.value:
            state.status, state.reason = "incomplete", "max_output_tokens"
        else:
            state.status = "completed"
        state.usage = live.progress.usage
        tells_calls = state.status == "completed" and not self._has_told_calls
        self._has_told_calls |= tells_calls
        parts = outcome.parts if outcome and tells_calls else None
        self._response.end(call_items(live.record.message_id, parts or ()))

    def _say_rest(self, content: str) -> None:
        """Tell the end of the answer, which has no sound, such as code."""
        rest = self._delivered.rest_of(content)
        if rest.strip():
            self._say(rest)

    def _fail(self, error: AppError) -> None:
        if self.is_paused:
            self._failure = error
            return
        if self.is_over:
            return
        item, state = self.turn_input.item, self.state
        if self.turn_input.pcm and item and not item.text and self.live:
            self._parts.outbox.put(TranscriptFailed(item.id, error))
        state.status, state.error = "failed", error
        if not self._response.is_announced:
            state.id = f"resp_{new_id().hex}"
        self._response.announce()
        self._response.end()

    # Its sound

    def begin(self, utterance: Utterance) -> None:
        """Fulfil `LiveSink.begin`."""
        self._words_of_sound += utterance.written

    async def sound(self, pcm: bytes, sample_rate_hz: int) -> None:
        """Fulfil `LiveSink.sound`; waits while four seconds are not played yet, or in a pause."""
        await self._started.wait()
        if self.live:
            self._take_all(self.live.log.after(self._last_number))
        for block in self._blocks.cut(pcm, sample_rate_hz):
            if not await self._may_play():
                return
            if self._words_of_sound:
                words, self._words_of_sound = self._words_of_sound, ""
                self._say(words)
            self._response.play(block)

    async def _may_play(self) -> bool:
        """Wait until the next block may be handed over; return False where nobody wants it."""
        while not self._has_left and self.live:
            if self.is_paused:
                await self._released.wait()
            elif self.is_over or self._is_cut:
                return False
            elif await self._response.sound.wait_for_room():
                return True
        return False

    # Its interruption

    def pause(self, reason: str) -> None:
        """End the response at once; `cut` or `resume` decides whether the answer has ended, too.

        The turn goes on as far as it can without being heard.
        """
        if not self.is_paused and not self._is_cut:
            self.is_paused, self._released = True, anyio.Event()
            self._delivered.played_ms = self._response.stop(reason)

    def sent_ms(self, item: str) -> int:
        """Return how much sound of one of its items was sent."""
        sent_ms = self._delivered.sent_ms(item)
        return self.playback.sent_ms if sent_ms is None else sent_ms

    def truncate(self, item: str, played_ms: int) -> int | None:
        """Take note of what the client has played of an item.

        Returns the milliseconds to cancel the turn with; `None` where it is only paused, or another
        response has taken up the item.
        """
        if self._delivered.sent_ms(item) is not None:
            return None
        if self.is_paused:
            self._delivered.played_ms = played_ms
            self._truncate_item(self._delivered.all_played_ms)
            return None
        self.cut("client_cancelled")
        return self._delivered.played_before_ms + played_ms

    def resume(self) -> None:
        """Go on after a pause, in a new response, with what was not heard; the turn is the same."""
        paused, live = self._response, self.live
        self.is_paused = False
        if not paused.is_announced or live is None:
            paused.state.status, paused.state.reason = "in_progress", None
            paused.sound = PacedSound()
        else:
            self._take_up(
                paused, f"resp_{live.record.id.hex}_{self._delivered.response_number + 1}"
            )
        self._end_pause()
        if live and live.outcome:
            self._finish()

    def _take_up(self, paused: LiveResponse, response_id: str) -> None:
        blocks = list(paused.sound.blocks_after(self._delivered.played_ms))
        heard_words = self._truncate_item(self._delivered.all_played_ms)
        item = paused.item.id if paused.item else response_id
        rest = self._delivered.begin_again(item, paused.sound.playback.sent_ms, heard_words)
        state = replace(
            paused.state, id=response_id, status="in_progress", reason=None, items=[], usage=None
        )
        self._response = LiveResponse(self._parts.conversation, self._parts.outbox, state)
        self._response.announce()
        if rest or blocks:
            self._say(rest)
        for block in blocks:
            self._response.play(block)

    def cut(self, reason: str) -> int | None:
        """End the answer at once; return the milliseconds that were played, `None` if written.

        The caller cancels the turn: see `cancel_turn`.
        """
        self.pause(reason)
        self.is_paused, self._is_cut = False, True
        self._end_pause()
        return self._delivered.all_played_ms if self._request.is_spoken else None

    def _end_pause(self) -> None:
        self._released.set()
        failure, self._failure = self._failure, None
        if failure:
            self._fail(failure)

    async def wait_until_cancelled(self) -> None:
        """Return once its turn is cancelled, if it was cut."""
        if self._is_cut:
            await self._cancelled.wait()

    async def cancel_turn(self, played_ms: int | None) -> None:
        """Cancel the turn; of a spoken answer the history keeps what was played."""
        await self._started.wait()
        try:
            if self.live:
                with anyio.CancelScope(shield=True):  # also where the client leaves right behind it
                    await self._cancel_started_turn(self.live, played_ms)
            self.turn_input.drop_early()
        finally:
            self._cancelled.set()

    async def _cancel_started_turn(self, live: LiveTurn, played_ms: int | None) -> None:
        async with self._parts.cancelling:
            try:
                await self._parts.turns.cancel(
                    self._parts.caller, live.record.id, played_ms=played_ms
                )
            except AppError as error:
                logger.warning("an answer could not be cut short: %s", error)
                return
            if played_ms is not None:
                self._truncate_item(played_ms)

    def _truncate_item(self, played_ms: int) -> str:
        """Return the words of the first milliseconds; the newest item has no others."""
        heard_words, heard_of_item = self._delivered.heard(self.live, played_ms)
        if self._response.item:
            self._response.item.text = heard_of_item
        return heard_words

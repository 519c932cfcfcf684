"""What the client is told of one response, from its beginning to its end."""

from collections.abc import Iterable

from app.models import Role
from app.services.live_voice.events import (
    AnswerBegan,
    AnswerEnded,
    AnswerSound,
    AnswerWords,
    CallMade,
    ResponseBegan,
    ResponseEnded,
    ResponseState,
)
from app.services.live_voice.items import Item, LineConversation
from app.services.live_voice.outbox import Outbox
from app.services.live_voice.paced_sound import PacedSound


class LiveResponse:
    """One response. An answer whose interruption is taken back has several, one after another."""

    def __init__(
        self, conversation: LineConversation, outbox: Outbox, state: ResponseState
    ) -> None:
        self.state = state
        self.item: Item | None = None
        """Its message, once that has begun."""
        self.sound = PacedSound()
        self.is_announced = False
        self.is_over = False
        """True once the client was told that it is over."""
        self._conversation = conversation
        self._outbox = outbox

    def announce(self) -> None:
        """Tell of its beginning, and where it was stopped before that, of its end."""
        if not self.is_announced:
            self.is_announced = True
            self._outbox.put(ResponseBegan(self.state))
            if self.state.status != "in_progress":
                self.end()

    def begin_item(self, item_id: str) -> None:
        """Begin its message."""
        item = Item(item_id, role=Role.ASSISTANT, is_sound=self.state.is_spoken, is_running=True)
        self.item = item
        self.state.items.append(item)
        before = self._conversation.add(item)
        self._outbox.put(AnswerBegan(self.state, item, before))

    def say(self, words: str) -> None:
        """Tell the next words of its message, which has begun."""
        if self.item and words:
            self.item.text += words
            self._outbox.put(AnswerWords(self.state, self.item, words))

    def play(self, block: bytes) -> None:
        """Tell the next sound; an answer that has nothing to say has a silence and no message."""
        if self.item:
            self.sound.send(block)
            self._outbox.put(AnswerSound(self.state, self.item, block))

    def stop(self, reason: str) -> int:
        """End at once; return how many milliseconds of its sound were played by our clock.

        Where it is not announced, its end follows its beginning.
        """
        self.sound.take_back(self._outbox.take_back_sound(self.state))
        played_ms = self.sound.playback.played_ms
        self.sound.stop()
        if not self.is_over:
            self.state.status, self.state.reason = "cancelled", reason
            if self.is_announced:
                self.end()
        return played_ms

    def end(self, calls: Iterable[Item] = ()) -> None:
        """Tell of its end, as `state` says, with calls of the client's tools."""
        if self.is_over:
            return
        self.is_over = True
        if self.item:
            self.item.is_running = False
            self.item.is_complete = self.state.status == "completed"
            self._outbox.put(AnswerEnded(self.state, self.item))
        for call in calls:
            self.state.items.append(call)
            before = self._conversation.add(call)
            self._outbox.put(CallMade(self.state, call, len(self.state.items) - 1, before))
        self._outbox.put(ResponseEnded(self.state))

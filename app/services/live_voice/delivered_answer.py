"""What the client was told of an answer over all its responses, and what it has heard of that."""

from app.services.turns import LiveTurn
from app.services.turns.context.heard_text import heard_text


class DeliveredAnswer:
    """The words and the sound of one answer. Each is counted once, also where it is said again."""

    def __init__(self) -> None:
        self.words = ""
        self.played_ms = 0
        """At a pause: how much was played of the running response."""
        self.played_before_ms = 0
        """How much was played of the responses before it."""
        self._heard_before = ""
        self._sent_ms: dict[str, int] = {}

    @property
    def all_played_ms(self) -> int:
        """How much was played up to the pause, or until the answer was cut."""
        return self.played_before_ms + self.played_ms

    @property
    def response_number(self) -> int:
        """The number of the running response, from 1 on."""
        return len(self._sent_ms) + 1

    def sent_ms(self, item: str) -> int | None:
        """Return how much was sent of an item of an earlier response; else `None`."""
        return self._sent_ms.get(item)

    def rest_of(self, content: str) -> str:
        """Return the end of the answer that is not told yet."""
        return content[len(self.words) :] if content.startswith(self.words) else ""

    def heard(self, live: LiveTurn | None, played_ms: int) -> tuple[str, str]:
        """Return the words of the first milliseconds: of the answer, and of its last response."""
        words = self.words
        if live and live.voice:
            content = live.outcome.content if live.outcome else words
            beginning = heard_text(content, live.voice.pieces(), played_ms)
            words = content if beginning is None else beginning
        return words, words[len(self._heard_before) :]

    def begin_again(self, item: str, sent_ms: int, heard_words: str) -> str:
        """Go on behind what was heard, in another response; return the words to say again."""
        rest = self.words[len(heard_words) :]
        self._sent_ms[item] = sent_ms
        self.played_before_ms, self.played_ms = self.all_played_ms, 0
        self.words = self._heard_before = heard_words
        return rest

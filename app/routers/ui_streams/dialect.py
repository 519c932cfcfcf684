"""What the dialects of user interfaces have in common: what a client was shown of an answer."""

from collections.abc import Sequence
from dataclasses import field
from typing import Any, Protocol

import orjson

from app.core.value_objects import value_object
from app.services.turns.events import EventValue, RequiredAction
from app.services.turns.parts import PARAGRAPH

PING = b": ping\n\n"
"""What is sent in silence; a comment, which clients leave out."""


@value_object(frozen=True, slots=True)
class Answered:
    """Calls of tools that the request itself says something about, by their ids."""

    actions: frozenset[str] = field(default_factory=frozenset[str])
    """All of them: nobody is asked for them again."""
    outputs: frozenset[str] = field(default_factory=frozenset[str])
    """Those whose output the client has, as it is the client's."""


NOTHING_ANSWERED = Answered()


class UIDialect(Protocol):
    """Encodes one stream of a turn. Frames are sent in the order of the calls."""

    def begin(self) -> bytes:
        """Return the first frames of a stream."""
        ...

    def encode(self, values: Sequence[EventValue]) -> bytes:
        """Return the frames of events; empty where they have nothing that clients are shown."""
        ...

    def end(self) -> bytes:
        """Return the last frames, unless the turn's last event was encoded."""
        ...

    def fail(self, code: str, detail: str) -> bytes:
        """Return the last frames of a stream that breaks off."""
        ...


class AnswerText:
    """The text of an answer, of which a later attempt shows only what is new.

    An attempt that goes on where another one stopped repeats the text so far.
    """

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._expected = ""
        self._repeated: str | None = None
        """What was repeated so far; `None` once the attempt is beyond it."""

    def begin_attempt(self) -> None:
        """Note that the answer is given from its beginning."""
        if self._shown:
            self._expected, self._repeated = "".join(self._shown), ""

    def take(self, delta: str) -> tuple[str, bool]:
        """Return what of a delta is new, and whether it is another answer than what was shown."""
        if self._repeated is None:
            self._shown.append(delta)
            return delta, False
        self._repeated += delta
        if self._expected.startswith(self._repeated):
            return "", False
        text, is_same = self._repeated, self._repeated.startswith(self._expected)
        self._repeated = None
        if is_same:
            new = text[len(self._expected) :]
            self._shown.append(new)
            return new, False
        self._shown = [text]
        return text, True

    def take_rest(self) -> str:
        """Return the answer where it ended before it had repeated what was shown; else nothing."""
        text, self._repeated = self._repeated or "", None
        return "" if text == self._expected else text


def without_separator(text: str) -> str:
    """Return the beginning of a step's text: it is a part of its own, and needs no empty line."""
    return text.removeprefix(PARAGRAPH)


def parsed(text: str) -> Any:  # noqa: ANN401  # any JSON
    """Return the value of a JSON text, or the text where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def question_of(action: RequiredAction) -> dict[str, Any]:
    """Return the question of an MCP server that a call waits for."""
    return dict(action.question or {})

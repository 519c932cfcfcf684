"""What the dialects of user interfaces have in common: what a client was shown of an answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Protocol, TypeAlias

import orjson

from app.core.value_objects import value_object
from app.services.turns.events import (
    EventValue,
    OutputTextDelta,
    ReasoningText,
    RequiredAction,
    TurnCompleted,
    TurnFailed,
)
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


_Encoder: TypeAlias = Callable[[Any, Any], bytes]
TEXT, REASONING = "text", "reasoning"


class AnswerFrames(ABC):
    """What both dialects make of a turn's events: one open part at a time, and its deltas."""

    encoders: ClassVar[Mapping[type, _Encoder]]
    """A method for each type of event that clients are shown."""

    def __init__(
        self, *, is_typed: bool, may_approve: Callable[[RequiredAction], bool], answered: Answered
    ) -> None:
        """`is_typed`: the answer is JSON, which is shown once it is valid.

        `may_approve` tells which approvals the client is asked for.
        """
        self.is_typed = is_typed
        self.may_approve = may_approve
        self.answered = answered
        self.text = AnswerText()
        self.calls: set[str] = set()
        self.open_kind = ""
        """Of the open part; empty without one."""
        self.part_count = 0
        self.delta_start = b""
        """A delta's frame up to its text."""
        self.is_over = False

    def encode(self, values: Sequence[EventValue]) -> bytes:
        """Return the frames of events."""
        return b"".join([self._encode(value) for value in values])

    @abstractmethod
    def open_part(self, kind: str) -> bytes:
        """Return the frames that open a part of the answer, and set `delta_start`."""

    @abstractmethod
    def close_part(self) -> bytes:
        """Return the frames that close the open part, if there is one."""

    @abstractmethod
    def fail(self, code: str, detail: str) -> bytes:
        """Return the last frames of a stream that breaks off."""

    def encode_text(self, value: OutputTextDelta) -> bytes:
        """Encode a piece of the answer."""
        if self.is_typed:
            return b""
        text, is_another = self.text.take(value.delta)
        frames = self.close_part() if is_another else b""
        return frames + self.delta(TEXT, text)

    def encode_reasoning(self, value: ReasoningText) -> bytes:
        """Encode a piece of what the model thinks aloud."""
        return self.delta(REASONING, value.delta)

    def encode_failure(self, value: TurnFailed) -> bytes:
        """Encode the last event of a failed turn."""
        return self.fail(value.error.code, value.error.detail)

    def rest_of(self, value: TurnCompleted) -> bytes:
        """Return the frames of what a completed answer has beyond what was shown."""
        rest = value.message.content if self.is_typed else self.text.take_rest()
        return self.close_part() + self.delta(TEXT, rest) if rest else b""

    def is_new_call(self, call_id: str) -> bool:
        """Note a call; tell whether it is the first time."""
        is_new = call_id not in self.calls
        self.calls.add(call_id)
        return is_new

    def delta(self, kind: str, delta: str) -> bytes:
        """Return the frames of a piece of text, which opens a part of its kind where none is."""
        frames = b""
        if self.open_kind != kind:
            delta = without_separator(delta)
            if not delta:
                return b""
            frames = self.close_part()
            self.open_kind = kind
            self.part_count += 1
            frames += self.open_part(kind)
        if not delta:  # AG-UI's client refuses an empty one
            return frames
        return b"".join((frames, self.delta_start, orjson.dumps(delta), b"}\n\n"))

    def _encode(self, value: EventValue) -> bytes:
        encode = self.encoders.get(type(value))
        return encode(self, value) if encode else b""


def start_of_delta(head: Mapping[str, Any]) -> bytes:
    """Return the frame of a delta up to its text."""
    return b"data: " + orjson.dumps(head)[:-1] + b',"delta":'


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

"""Reasoning that a model writes into its answer: `<think>...</think>` at its beginning.

Models have other names for the tag, and Magistral's has brackets.
"""

import re
from enum import Enum, auto

_NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
_OPENING = (*(f"<{name}>" for name in _NAMES), "[think]")
_CLOSING_TAGS = (*(f"</{name}>" for name in _NAMES), "[/think]")
_LONGEST_TAG = max(map(len, _CLOSING_TAGS))
_CLOSING = re.compile("|".join(map(re.escape, _CLOSING_TAGS)), re.IGNORECASE)


class _State(Enum):
    START = auto()
    """Nothing but spaces, and perhaps the beginning of a tag, has come."""
    REASONING = auto()
    ANSWER = auto()


class ReasoningSplitter:
    """Splits text into reasoning and answer, wherever its pieces were cut.

    Only tags before the first word of the answer count; spaces behind them are dropped.
    """

    __slots__ = ("_held", "_is_behind_tag", "_state", "is_in_answer")

    def __init__(self) -> None:
        self.is_in_answer = False
        """True from the answer's first word on: then nothing is split any more."""
        self._state = _State.START
        self._held: str = ""
        self._is_behind_tag = False

    def feed(self, text: str) -> list[tuple[bool, str]]:
        """Take the next text; return pieces, each with whether it is reasoning."""
        if self.is_in_answer:
            return [(False, text)]
        self._held += text
        pieces: list[tuple[bool, str]] = []
        while self._read(pieces):
            pass
        return pieces

    def end(self) -> list[tuple[bool, str]]:
        """Return what was held back."""
        held, self._held = self._held, ""
        if self._state is _State.START and self._is_behind_tag:
            held = held.lstrip()
        return [(self._state is _State.REASONING, held)] if held else []

    def _read(self, pieces: list[tuple[bool, str]]) -> bool:
        """Read on in what is held; False where more text is needed."""
        match self._state:
            case _State.START:
                return self._read_start()
            case _State.REASONING:
                return self._read_reasoning(pieces)
            case _State.ANSWER:
                if self._held:
                    pieces.append((False, self._held))
                    self._held = ""
                return False

    def _read_start(self) -> bool:
        text = self._held.lstrip()
        beginning = text[:_LONGEST_TAG].lower()
        for tag in _OPENING:
            if beginning.startswith(tag):
                self._held = text[len(tag) :]
                self._state = _State.REASONING
                return True
        if any(tag.startswith(beginning) for tag in _OPENING):
            return False
        if self._is_behind_tag:
            self._held = text
        self._state = _State.ANSWER
        self.is_in_answer = True
        return True

    def _read_reasoning(self, pieces: list[tuple[bool, str]]) -> bool:
        text = self._held
        if closing := _CLOSING.search(text):
            if closing.start():
                pieces.append((True, text[: closing.start()]))
            self._held = text[closing.end() :]
            self._state, self._is_behind_tag = _State.START, True
            return True
        # The end may be the beginning of the tag.
        bracket = max(text.rfind("<", -_LONGEST_TAG), text.rfind("[", -_LONGEST_TAG))
        tail = text[bracket:].lower() if bracket >= 0 else ""
        keeps = bool(tail) and any(tag.startswith(tail) for tag in _CLOSING_TAGS)
        whole = text[:bracket] if keeps else text
        self._held = text[bracket:] if keeps else ""
        if whole:
            pieces.append((True, whole))
        return False

"""Split an answer into sentences while it is being generated."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

_FIRST_CLAUSE_CHARACTERS = 60
_SHORTEST_CLAUSE_CHARACTERS = 20
_SHORTEST_DENSE_CLAUSE_CHARACTERS = 6
"""The same for scripts without spaces, where a character is about a word."""

_CONTEXT_CHARACTERS = 600
"""Characters before a candidate that the segmenter reads: keeps its cost constant."""

_CLAUSE_MARKS = ",;:—،؛、，；："  # noqa: RUF001  # these are the marks
_DENSE_CLAUSE_MARKS = "—、，；："  # noqa: RUF001
_DENSE_ENDS = "。！？｡"  # noqa: RUF001
_DENSE_OPENERS, _DENSE_CLOSERS = "「『（《“", "」』）》”"  # noqa: RUF001
_CLOSERS = "\"'”’»)]}」』*_~`"  # noqa: RUF001
_LIST_NUMBER = re.compile(r"\s*\d+[.)]\s*")
_MARKDOWN = re.compile(r"[*_~`]+")
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class _Candidate:
    """A possible end of a sentence: `end` is the position after the space that follows it."""

    end: int
    needs_whole_word: bool
    word_has_begun: bool = False


class SentenceCutter:
    """Splits one answer, which is fed in chunks of any size, into sentences.

    The sentences joined are the answer, except for trailing spaces and lone surrogates, which
    become U+FFFD. The result does not depend on the chunks. A line break ends a piece. Only the
    first piece may be shorter than a sentence, a clause of at most 60 characters; later pieces
    only where a sentence is longer than `max_characters`.
    """

    def __init__(self, language: str | None, max_characters: int) -> None:
        if max_characters < 1:
            raise ValueError(
                "max_characters must be at least 1: a piece needs room for one character"
            )
        self._language = re.split("[-_]", language or "en")[0].lower()
        self._max_characters = max_characters
        self._text = ""
        self._candidate: _Candidate | None = None
        self._has_cut = False

    def feed(self, delta: str) -> list[str]:
        """Append `delta`; return the sentences that are now complete, often none."""
        pieces: list[str] = []
        for character in _SURROGATES.sub("\ufffd", delta):
            self._take(character, pieces)
        return pieces

    def finish(self) -> list[str]:
        """Return the rest of the answer. `feed` must not be called afterwards."""
        pieces: list[str] = []
        self._decide(pieces)
        if self._text.strip():
            pieces.append(self._text)
        self._text = ""
        return pieces

    def _take(self, character: str, pieces: list[str]) -> None:
        if len(self._text) == self._max_characters:
            self._cut(_best_cut(self._text + character), pieces)
        if character.isspace():
            self._decide_after_word(pieces)
            self._text += character
            if character == "\n":
                self._cut(len(self._text), pieces)
            elif _may_end_sentence(self._text):
                self._candidate = _Candidate(len(self._text), _ends_in_ordinal(self._text))
        else:
            self._text += character
            if character.isalnum():
                self._begin_word(character, pieces)
            elif character in _DENSE_ENDS and not _is_quoting(self._text):
                self._cut(len(self._text), pieces)
        if not self._has_cut and self._is_first_clause():
            self._cut(len(self._text), pieces)

    def _begin_word(self, character: str, pieces: list[str]) -> None:
        candidate = self._candidate
        if candidate is None or candidate.word_has_begun:
            return
        candidate.word_has_begun = True
        # A capital or a script without them decides; "5 p.m. on" and "3. Mai" need the whole word.
        if not candidate.needs_whole_word and not character.islower() and character.isalpha():
            self._decide(pieces)

    def _decide_after_word(self, pieces: list[str]) -> None:
        if self._candidate and self._candidate.word_has_begun:
            self._decide(pieces)

    def _decide(self, pieces: list[str]) -> None:
        """Let the segmenter decide whether the candidate is the end of a sentence."""
        candidate, self._candidate = self._candidate, None
        if candidate is None or not candidate.word_has_begun:
            return
        begin = max(0, candidate.end - _CONTEXT_CHARACTERS)
        before = _MARKDOWN.sub("", self._text[begin : candidate.end])
        after = _MARKDOWN.sub("", self._text[candidate.end :])
        segments = _load_segment()(self._language, before + after)
        if len(segments) > 1 and segments[-1].strip() == after.strip():
            self._cut(candidate.end, pieces)

    def _cut(self, end: int, pieces: list[str]) -> None:
        piece = self._text[:end]
        if piece.strip():
            pieces.append(piece)
            self._has_cut = True
            self._text = self._text[end:]
            self._candidate = None
        elif len(piece) == self._max_characters:
            self._text = self._text[end:]

    def _is_first_clause(self) -> bool:
        clause = self._text.strip()
        if len(self._text) > _FIRST_CLAUSE_CHARACTERS or clause[-1:] not in _CLAUSE_MARKS:
            return False
        is_dense = clause[-1:] in _DENSE_CLAUSE_MARKS
        if not is_dense and not self._text[-1].isspace():
            return False
        has_spaces = " " in clause
        return len(clause) >= (
            _SHORTEST_DENSE_CLAUSE_CHARACTERS
            if is_dense and not has_spaces
            else _SHORTEST_CLAUSE_CHARACTERS
        )


def _best_cut(text: str) -> int:
    """Return where to split a text that is one character too long: at a clause or space if any."""
    most = len(text) - 1
    for end in range(most, most // 2, -1):
        mark = text[end - 1]
        if mark in _DENSE_CLAUSE_MARKS or (mark in _CLAUSE_MARKS and text[end].isspace()):
            return end
    for end in range(most, 0, -1):
        if (text[end].isspace() or text[end - 1].isspace()) and text[:end].strip():
            return end
    return most


@cache
def _load_segment() -> Callable[[str, str], list[str]]:
    """Import the segmenter (1 MB, 1 ms) at first use, which is the first voice turn."""
    import sentencex

    return cast(
        "Callable[[str, str], list[str]]",
        sentencex.segment,  # pyright: ignore  # noqa: PGH003  # it has no types
    )


def _may_end_sentence(text: str) -> bool:
    """Return whether `text` ends with a punctuation mark and space; sentencex then decides."""
    if _LIST_NUMBER.fullmatch(text):
        return False
    mark = text[-_CONTEXT_CHARACTERS:].rstrip().rstrip(_CLOSERS)[-1:]
    return bool(mark) and mark not in _CLAUSE_MARKS and unicodedata.category(mark) == "Po"


def _ends_in_ordinal(text: str) -> bool:
    return bool(re.search(r"\d\.\s+$", text[-8:]))


def _is_quoting(text: str) -> bool:
    return sum(map(text.count, _DENSE_OPENERS)) > sum(map(text.count, _DENSE_CLOSERS))

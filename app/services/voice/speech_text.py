"""Convert written text to text for speech synthesis: no Markdown, code, URLs or emoji.

Runs on the output of the sentence cutter, so that the pieces before it, joined, are the stored
answer. From these the played part of an interrupted answer is computed.
"""

import html
import re
from collections.abc import Callable

CODE_NOTICE = "Code is shown in the text."

_FENCE = re.compile(r"\s*(?:[-*+>]\s+|\d+[.)]\s+)*(`{3,}|~{3,})([^`]*)$")
_LINE_MARKS = re.compile(
    r"""\s*(?:>\s?)*              # block quote
    (?:\#{1,6}\s+|[-*+•]\s+)?    # heading or list item; numbers stay
    (?:\[[ xX]\]\s+)?            # task list item
    """,
    re.VERBOSE,
)
_LINK_DEFINITION = re.compile(r"\s*\[[^\[\]]+\]:\s*\S+")
_TABLE_RULE = re.compile(r"[\s|:+=-]+")
_HOST = re.compile(r"(?:https?://)?(?:[^\s/@]*@)?(?:www\.)?([^\s/:?#]*[^\s/:?#.,;!])?(?::\d+)?")
_PICTURES = "\U0001f000-\U0001faff\u2190-\u21ff\u2300-\u23ff\u2460-\u27bf\u2b00-\u2bff"

Replacement = str | Callable[[re.Match[str]], str]


def _host(address: re.Match[str]) -> str:
    url = address[0].rstrip(".,;:!?" if "(" in address[0] else ".,;:!?)")
    host = _HOST.match(url)
    return ((host and host[1]) or "a link") + address[0][len(url) :]


def _protect(escaped: re.Match[str]) -> str:
    """Map an escaped character to the private use area, so that the Markdown rules skip it."""
    return chr(0xE000 + ord(escaped[1]))


def _unprotect(hidden: re.Match[str]) -> str:
    return chr(ord(hidden[0]) - 0xE000)


_REPLACEMENTS: tuple[tuple[re.Pattern[str], Replacement], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufffc-\uffff]", " "),
        (r"\\([!-/:-@\[-`{-~])", _protect),
        (r"<!--.*?(?:-->|$)", " "),
        (r"!?\[([^\[\]]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+[\"'(][^)]*)?\)", r"\1"),  # link
        (r"\[\^[^\[\]]*\]", ""),  # footnote
        (r"\[([^\[\]]+)\]\[[^\[\]]*\]", r"\1"),  # link by reference
        (r"\]\((?:[^()\s]|\([^()\s]*\))*\)?", " "),  # end of a link that was split between pieces
        (r"<(https?://[^\s<>]+|mailto:[^\s<>]+)>", r"\1"),
        (r"\bmailto:", ""),
        (r"(?:https?://|\bwww\.)[^\s<>\[\]\"|*`]+", _host),
        (r"</?[a-zA-Z][^<>]*>", " "),
        (r"`+", ""),
        (r"~~", ""),
        (r"(?<![\w*])\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?![\w*])", ""),
        (r"(?<!\w)_{1,3}(?=\S)|(?<=\S)_{1,3}(?!\w)", ""),
        (r"^\||\|$", " "),
        (r"\s+\|\s+", ", "),
        (r"(?<!\w)\[([^\[\]]*)\]", r"\1"),
        (r"\[(?=[^\[\]]*$)", " "),
        # Emoji with modifiers and joiners; a joiner alone is part of Indic scripts.
        (f"[{_PICTURES}][\ufe0e\ufe0f\u200d\u20e3\U0001f3fb-\U0001f3ff]*", " "),
        ("[\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]", ""),
        ("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]", ""),
        ("[\ue000-\ue07f]", _unprotect),
        (r"\s+", " "),
        (r" (?=[.,;!?](?:\s|$))", ""),
    )
)


class SpeechTextFilter:
    """Converts one reply, piece by piece; keeps track of fenced code blocks.

    A piece holds at most one line of the reply with its line break, as `SentenceCutter` yields it.
    """

    def __init__(self, code_notice: str = CODE_NOTICE) -> None:
        self._code_notice = code_notice
        self._fence = ""
        self._is_at_line_start = True

    def clean(self, piece: str) -> str:
        """Return the text to synthesize for `piece`; may be empty.

        A code block is replaced by one notice at its beginning.
        """
        begins_line = self._is_at_line_start or piece.lstrip(" \t").startswith("\n")
        self._is_at_line_start = piece.endswith("\n")
        line = piece.strip()
        if begins_line and (fence := _FENCE.match(line)):
            return self._pass_fence(fence)
        if self._fence:
            return ""
        return _speakable_line(line, begins_line=begins_line)

    def _pass_fence(self, fence: re.Match[str]) -> str:
        marks, info = fence[1], fence[2]
        if not self._fence:
            self._fence = marks
            return self._code_notice
        if marks.startswith(self._fence) and not info.strip():
            self._fence = ""
        return ""


def to_speech_text(text: str) -> str:
    """Return the text to synthesize for all of `text`; may be empty."""
    text_filter = SpeechTextFilter()
    return " ".join(filter(None, map(text_filter.clean, text.splitlines(keepends=True))))


def _speakable_line(text: str, *, begins_line: bool) -> str:
    if begins_line:
        if _LINK_DEFINITION.fullmatch(text) or _TABLE_RULE.fullmatch(text):
            return ""
        text = _LINE_MARKS.sub("", text, count=1)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = html.unescape(text).strip(" \t,")
    return text if any(map(str.isalnum, text)) else ""

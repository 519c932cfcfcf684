"""Prepares text for the English phonemiser, which mangles whatever is not plain prose."""

import re
import unicodedata

LONGEST_WORD = 40
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"!?\[([^\]]*)\]\([^)]*\)", r"\1"),
        (r"(?i)\b(?:https?://|www\.)\S*[^\s.,;:!?)\]]", " a link "),
        (r"<[^<>]{1,80}>", " "),
        (r"\b(\d{1,2}):00\b", r"\1 o'clock"),
        (r"\b(\d{1,2}):0(\d)\b", r"\1 oh \2"),
        (r"\b(\d{1,2}):(\d\d)\b", r"\1 \2"),
        (r"(\d)\s*[-–](?=\d)", r"\1 "),  # noqa: RUF001 - an en dash is meant
        (r"\s*°\s*C\b", " degrees Celsius"),
        (r"\s*°\s*F\b", " degrees Fahrenheit"),
        (r"°", " degrees "),
        (r"½", " a half "),
        (r"¼", " a quarter "),
        (r"¾", " three quarters "),
        (r"²", " squared "),
        (r"³", " cubed "),
        (r"#(?=\d)", " number "),
        (r"(?<=\w)@(?=\w)", " at "),
        (r"\s\+\s|(?<=\d)\+(?=\d)", " plus "),
        (r"\s*=\s*", " equals "),
        (r"[/\\|_]", " "),
        (r"[*`~#<>{}\[\]^]", ""),
    )
)
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "ø": "o", "œ": "oe", "ł": "l", "đ": "d", "ð": "th", "þ": "th"}
)
_KEPT_CATEGORIES = ("N", "P", "Z", "Sc")
_BROKEN_WORD = re.compile(rf"(\S{{{LONGEST_WORD}}})(?=\S)")


def without_code(text: str) -> str:
    """Return `text` without fenced code, which nobody wants to hear."""
    return _FENCED.sub("\n", text)


def speakable(text: str) -> str:
    """Return `text` without what cannot be read aloud in English; may be empty."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    folded = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    text = "".join(_kept(letter) for letter in folded)
    # The phonemiser takes seconds over a very long word, so it gets it in pieces.
    text = _BROKEN_WORD.sub(r"\1 ", " ".join(text.split()))
    return text if re.search(r"[A-Za-z0-9]", text) else ""


def _kept(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else " "
    category = unicodedata.category(letter)
    if category.startswith(("L", "M")):
        return ""
    return letter if category.startswith(_KEPT_CATEGORIES) else " "

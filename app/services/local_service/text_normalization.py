"""Normalize text for the English phonemizer, which handles only plain prose correctly."""

import re
import unicodedata

LONGEST_WORD = 20
"""Longer words are split: the phonemizer takes 8 s for an unknown word of 37 letters."""
PIECE_OF_WORD = 10
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
_LONG_WORD = re.compile(rf"[^\W_]{{{LONGEST_WORD + 1},}}")
_STUTTER = re.compile(r"([^\W\d_])\1{3,}")


def without_code(text: str) -> str:
    """Return `text` without fenced code blocks."""
    return _FENCED.sub("\n", text)


def speakable(text: str) -> str:
    """Return `text` without characters that cannot be pronounced in English; may be empty."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    folded = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    text = "".join(_keep_known(letter) for letter in folded)
    text = _STUTTER.sub(r"\1\1\1", " ".join(text.split()))
    text = _LONG_WORD.sub(_in_pieces, text)
    return text if re.search(r"[A-Za-z0-9]", text) else ""


def _in_pieces(word: re.Match[str]) -> str:
    letters = word.group()
    pieces = range(0, len(letters), PIECE_OF_WORD)
    return " ".join(letters[start : start + PIECE_OF_WORD] for start in pieces)


def _keep_known(letter: str) -> str:
    if letter.isascii():
        return letter if letter.isprintable() else " "
    category = unicodedata.category(letter)
    if category.startswith(("L", "M")):
        return ""
    return letter if category.startswith(_KEPT_CATEGORIES) else " "

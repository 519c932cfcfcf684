"""What was heard of an interrupted answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.turns.context.heard_text import heard_text, whole_words
from app.services.turns.voice_port import SpokenPiece

RATE_HZ = 24_000
CONTENT = "First things first. ```code``` Then the second thing. "


def piece(index: int, start: int, end: int, begin_ms: int, length_ms: int) -> SpokenPiece:
    return SpokenPiece(
        index=index,
        text="x",
        content_start=start,
        content_end=end,
        sample_rate_hz=RATE_HZ,
        start_sample=begin_ms * RATE_HZ // 1000,
        sample_count=length_ms * RATE_HZ // 1000,
        mp3=None,
    )


PIECES = [piece(0, 0, 20, 0, 1000), piece(1, 20, 54, 1000, 2000)]


@pytest.mark.parametrize(
    ("played_ms", "heard"),
    [
        (0, ""),
        (400, "First"),
        (700, "First things"),
        (940, "First things"),
        (1000, "First things first."),
        (2500, "First things first. ```code``` Then the"),
        (3000, None),
        (99_999, None),
    ],
)
def test_heard_is_counted_in_samples_and_whole_words(played_ms: int, heard: str | None) -> None:
    assert heard_text(CONTENT, PIECES, played_ms) == heard


def test_what_was_written_and_never_spoken_was_not_heard() -> None:
    assert heard_text(CONTENT + "And more.", PIECES, 99_999) == CONTENT.rstrip()
    assert heard_text("Nothing was spoken.", [], 0) == ""


def test_script_without_spaces_is_cut_between_characters() -> None:
    assert heard_text("今日は天気がいいです。", [piece(0, 0, 11, 0, 1000)], 500) == "今日は天気"


@given(st.text(), st.floats(0, 1))
def test_cut_is_within_the_text(text: str, share: float) -> None:
    assert 0 <= whole_words(text, share) <= len(text)

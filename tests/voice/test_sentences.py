"""An answer is cut where its sentences end, however it arrives."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.services.voice.sentences import SentenceCutter


def cut(text: str, *, size: int = 1, language: str | None = "en", most: int = 4096) -> list[str]:
    cutter = SentenceCutter(language, most)
    pieces = [
        piece for at in range(0, len(text), size) for piece in cutter.feed(text[at : at + size])
    ]
    return pieces + cutter.finish()


@pytest.mark.parametrize(
    ("language", "sentences"),
    [
        ("en", ["Dr. Smith paid 3.5 dollars. ", "He left at 5 p.m. on Monday. ", "So what?"]),
        ("en", ["The U.S. is big. ", "See www.example.com. ", "It is there."]),
        ("en", ["Wait... what? ", "Yes! ", "e.g. this one, i.e. that one. ", "No. 5 is alive."]),
        ("en", ['He said "Hi there." ', "Then he left."]),
        ("en", ["**This is bold.** ", "_This is not._ ", "Done."]),
        ("en", ["It was 1990. ", "Then came 1991."]),
        ("en", ["1. First item.\n", "2. Second item. ", "More.\n", "\nA paragraph."]),
        ("en", ["A heading\n", "- one\n", "- two\n", "```python\n", "x = 1\n", "```"]),
        ("de", ["Es war am 3. Mai. ", "Dann kam z. B. er. ", "Ende."]),
        ("es", ["Hola. ", "¿Qué tal? ", "¡Bien!"]),
        ("zh", ["你好。", "我是谁？", "他说：「今天天气很好！」然后走了。", "完"]),
        ("ja", ["これはペンです。", "あれは本です。"]),
        ("hi", ["नमस्ते। ", "आप कैसे हैं? ", "मैं ठीक हूँ।"]),
        ("ar", ["مرحبا. ", "كيف حالك؟ ", "أنا بخير."]),
        (None, ["One. ", "Two."]),
        ("pt-BR", ["O Sr. Silva chegou. ", "Ele saiu."]),
        ("xx", ["One. ", "Two."]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_sentences_of_many_languages_stay_whole(
    language: str | None, sentences: list[str], size: int
) -> None:
    assert cut("".join(sentences), language=language, size=size) == sentences


def test_sentence_leaves_as_soon_as_the_next_begins() -> None:
    cutter = SentenceCutter("en", 4096)

    assert cutter.feed("It is open.") == []
    assert cutter.feed(" ") == []
    assert cutter.feed("W") == ["It is open. "]


def test_sentence_of_chinese_leaves_at_its_full_stop() -> None:
    assert SentenceCutter("zh", 4096).feed("你好。") == ["你好。"]


def test_line_leaves_at_its_end() -> None:
    assert SentenceCutter("en", 4096).feed("Eggs\n") == ["Eggs\n"]


def test_first_piece_may_be_a_clause_and_later_ones_not() -> None:
    text = "Well, I think that it is a good idea, and we should do it. Yes, we really should, now."

    assert cut(text) == [
        "Well, I think that it is a good idea, ",
        "and we should do it. ",
        "Yes, we really should, now.",
    ]


def test_first_clause_of_a_script_without_spaces_may_be_short() -> None:
    assert cut("这个产品的价格是三点五元，但是我们可以商量。") == [
        "这个产品的价格是三点五元，",
        "但是我们可以商量。",
    ]


def test_number_with_a_comma_is_no_clause() -> None:
    assert cut("There are about 1,000,000 people") == ["There are about 1,000,000 people"]


def test_clause_above_sixty_characters_waits_for_the_end_of_its_sentence() -> None:
    text = "word " * 13 + "word, and more of it."

    assert cut(text) == [text]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two three four five", ["one two ", "three four", " five"]),
        ("aaaaaaaaaaaaaaaaaaaaa", ["aaaaaaaaaa", "aaaaaaaaaa", "a"]),
        ("abcdef, gh ijkl", ["abcdef,", " gh ijkl"]),
    ],
)
def test_what_is_too_long_is_cut_at_a_clause_a_space_or_hard(text: str, pieces: list[str]) -> None:
    assert cut(text, most=10) == pieces


def test_blank_answer_has_no_pieces() -> None:
    assert cut(" \n\n \t") == []


def test_lone_surrogate_becomes_a_replacement_character() -> None:
    assert cut("a\ud800b. C") == ["a\ufffdb. ", "C"]


def test_room_for_no_character_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="room"):
        SentenceCutter("en", 0)


PROSE = st.text(
    st.sampled_from("abcXYZ019 .  ,;:!?\n\t\"'()*_`—、，。！？「」…é你好।\ud800😀-#|"),
    max_size=300,
)


@settings(max_examples=300, deadline=None)
@given(PROSE, st.lists(st.integers(1, 40), min_size=1), st.integers(1, 80))
@example("Dr. Smith paid 3.5 dollars. Then he left.", [1], 80)
def test_pieces_are_the_text_within_the_limit_however_it_is_chunked(
    text: str, sizes: list[int], most: int
) -> None:
    cutter = SentenceCutter("en", most)
    pieces, at, turn = list[str](), 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        pieces += cutter.feed(text[at : at + size])
        at, turn = at + size, turn + 1
    pieces += cutter.finish()

    assert "".join("".join(pieces).split()) == "".join(text.replace("\ud800", "\ufffd").split())
    assert all(0 < len(piece) <= most and piece.strip() for piece in pieces)
    assert pieces == cut(text, size=len(text) or 1, most=most)


@pytest.mark.parametrize("text", ["word ", "a. ", "Dr. ", "x", "1. ", "你", "「", "**. "])
def test_cost_grows_with_the_text_and_not_with_its_square(text: str) -> None:
    def seconds(characters: int) -> float:
        begin = time.process_time()
        cut(text * (characters // len(text)), size=5)
        return time.process_time() - begin

    seconds(1000)
    assert seconds(40_000) < 40_000 * 50e-6

"""What is said aloud has no Markdown, code, addresses or pictures in it."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.voice.sentences import SentenceCutter
from app.services.voice.speech_text import CODE_NOTICE, SpeechTextFilter, to_speech_text


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Plain words stay, 3.5 too.", "Plain words stay, 3.5 too."),
        ("**Bold**, *it*, ***both***, __b__, _i_ and ~~gone~~.", "Bold, it, both, b, i and gone."),
        ("2 * 3 = 6 and 2*3, snake_case_name", "2 * 3 = 6 and 2*3, snake_case_name"),
        ("# A heading", "A heading"),
        ("### `code` in *it*", "code in it"),
        ("- item\n* item\n+ item", "item item item"),
        ("1. first\n2) second", "1. first 2) second"),
        ("- [x] done\n- [ ] open", "done open"),
        ("> quoted\n> > twice", "quoted twice"),
        ('See [the docs](https://ex.com/a_(b)?x=1 "T").', "See the docs."),
        ("![a cat](cat.png) and [ref][1]", "a cat and ref"),
        ("[1]: https://example.com", ""),
        ("As said[^1].", "As said."),
        ("Go to https://www.example.com/path?q=1.", "Go to example.com."),
        ("(see http://user:pw@a.io:80/x)", "(see a.io)"),
        ("At <https://foo.org/x> or www.bar.org/y, now", "At foo.org or bar.org, now"),
        ("Write to <mailto:a.b@c.de> or a.b@c.de", "Write to a.b@c.de or a.b@c.de"),
        ("Call `run_all()` first", "Call run_all() first"),
        ("| A | B |\n|---|:-:|\n| 1 | 2 |", "A, B 1, 2"),
        ("<b>bold</b><br/>next<!-- no --> &amp; more", "bold next & more"),
        ("3 < 5 and 5 > 3", "3 < 5 and 5 > 3"),
        ("Great! 😀👩‍👩‍👧 ✅ 🇩🇪 1️⃣ → done ✨", "Great! 1 done"),
        ("a\u200bb\ufeff\u00ad c\x00d\x1b[0m", "ab c d 0m"),
        ("क्षि का", "क्षि का"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        (r"\*not bold\* and 5\. x", "*not bold* and 5. x"),
        ("array[0] and [sic]", "array[0] and sic"),
        ("a   b\t\tc", "a b c"),
        ("你好，**世界**！", "你好，世界！"),
        ("***", ""),
        ("---\n===\n", ""),
        ("?!… 😀", ""),
        ("", ""),
        ("\ud800", ""),
    ],
)
def test_text_is_made_fit_for_ears(text: str, spoken: str) -> None:
    assert to_speech_text(text) == spoken


@pytest.mark.parametrize(
    "block",
    [
        "```python\nprint('hi')  # Foo. Bar\n\nx = 1\n```\n",
        "~~~\n``` not the end\n~~~\n",
        "````md\n```\ninner\n```\n````\n",
        "1. ```sh\n   rm -rf /\n   ```\n",
        "```\nnever closed",
    ],
)
def test_code_is_announced_once_and_not_read(block: str) -> None:
    assert to_speech_text("Look:\n" + block) == f"Look: {CODE_NOTICE}"


def test_speech_goes_on_behind_code() -> None:
    assert to_speech_text("```\nx\n```\nThat is it.") == f"{CODE_NOTICE} That is it."


def test_code_on_one_line_between_three_ticks_is_read() -> None:
    assert to_speech_text("```ls -l``` lists files") == "ls -l lists files"


def test_notice_can_be_of_another_language() -> None:
    spoken = SpeechTextFilter(code_notice="Der Code steht im Text.")

    assert spoken.clean("```\n") == "Der Code steht im Text."


ANSWER = """# Install it

First, run this command. It takes a while:

```sh
pip install foo. Bar --baz
echo "Done. Really."
```

Then open [the page. It is short](https://example.com/a?b=c) and click **Go. Now**.

| Name | Use. It |
|------|---------|
| foo  | bar     |
"""


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_pieces_of_the_cutter_are_cleaned_across_their_seams(size: int) -> None:
    cutter, spoken = SentenceCutter("en", 200), SpeechTextFilter()
    pieces = [
        piece for at in range(0, len(ANSWER), size) for piece in cutter.feed(ANSWER[at : at + size])
    ]

    said = [words for piece in [*pieces, *cutter.finish()] if (words := spoken.clean(piece))]

    assert " ".join(said) == (
        "Install it First, run this command. It takes a while: "
        f"{CODE_NOTICE} Then open the page. It is short and click Go. Now. "
        "Name, Use. It foo, bar"
    )


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("aB1 *_`~[]()<>|#-\\/:.!&;hps\n😀\x00w="), max_size=200))
def test_any_text_gives_words_or_nothing(text: str) -> None:
    said = to_speech_text(text)

    assert said == " ".join(said.split())
    assert said == "" or any(map(str.isalnum, said))


@pytest.mark.parametrize(
    "text",
    ["[", "*", "_a", "|", " ", "<a", "](", "http://", "`", "[a](", "\\", "- ", "[[a]", "<!--", "~"],
)
def test_no_text_takes_long(text: str) -> None:
    begin = time.process_time()
    to_speech_text(text * (4096 // len(text)) + "x")

    assert time.process_time() - begin < 0.25

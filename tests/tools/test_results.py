"""Texts of results: cut, compacted, and read from HTML in linear time."""

import json
import time

import hypothesis
import pytest
from hypothesis import strategies

from app.services.files.html_text import html_to_text
from app.services.tools.redaction import Redactor
from app.services.tools.results import compact_json, cut

JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
)


@hypothesis.given(strategies.text(), strategies.integers(100, 400))
def test_cut_text_is_never_longer_and_keeps_both_ends(text: str, max_bytes: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return
    shown = cut(text, max_bytes)

    assert len(shown.encode()) <= max_bytes
    assert (shown == text) == (size <= max_bytes)


@hypothesis.given(JSON)
def test_compacted_json_is_the_same_value(value: object) -> None:
    compacted = compact_json(json.dumps(value, indent=2, ensure_ascii=True))

    assert json.loads(compacted) == value or "\\u" in compacted
    assert "\n" not in compacted


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a < b and c > d", "a < b and c > d"),
        ("<!-- hidden --><p>shown", "shown"),
        ("<ul><li>one<li>two</ul>", "one\ntwo"),
        ("<style>p {}</style><div>x</div><SCRIPT>var a = '</p>'</SCRIPT>y", "x\ny"),
        ("<table><tr><td>1<td>2</table>", "1 2"),
        ("<head><title>no</title></head>&lt;b&gt; &#8364;", "<b> \u20ac"),
        ("<p unclosed", ""),
        ("<script>never closed <p>x", ""),
    ],
)
def test_html_is_read_as_people_do(html: str, text: str) -> None:
    assert html_to_text(html) == text


@pytest.mark.parametrize(
    "piece", ["<!--", "<script>", "<", "</", "<a ", "&", "&#", "<p>", "<![CDATA["]
)
def test_hostile_html_takes_linear_time(piece: str) -> None:
    html = piece * (1_000_000 // len(piece))

    began_at = time.thread_time()
    html_to_text(html)

    assert time.thread_time() - began_at < 3


def test_secret_within_another_is_replaced_as_the_longer_one() -> None:
    redactor = Redactor({"SHORT": "abcdefgh", "LONG": "abcdefgh-and-more"})

    assert redactor.redact("abcdefgh-and-more abcdefgh") == "[secret LONG] [secret SHORT]"
    assert Redactor({}).redact("abcdefgh") == "abcdefgh"

"""The text of an HTML page, in linear time for any bytes."""

import re
from html import unescape

_HIDDEN = frozenset(("script", "style", "template", "noscript", "svg", "head", "iframe", "object"))
_BLOCKS = frozenset(
    (
        "p", "div", "br", "li", "ul", "ol", "tr", "table", "section", "article", "header",
        "footer", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "hr", "dt", "dd",
        "title", "main", "nav", "form", "option",
    )
)  # fmt: skip
_TAG_NAME = re.compile(r"/?([A-Za-z][A-Za-z0-9]{0,30})")
_SPACES = re.compile(r"[ \t\r\f\v\u00a0]+")
_AROUND_BREAKS = re.compile(r" ?\n ?")
_MANY_BREAKS = re.compile(r"\n{3,}")


def html_to_text(html: str) -> str:
    """Return what a reader of the page sees, one line for each block."""
    lower = html.lower()
    if len(lower) != len(html):  # few letters have a lower case of another length
        lower = html
    pieces: list[str] = []
    position = 0
    while True:
        start = html.find("<", position)
        if start < 0:
            pieces.append(unescape(html[position:]))
            break
        pieces.append(unescape(html[position:start]))
        if html.startswith("<!--", start):
            position = _after(html, "-->", start)
            continue
        match = _TAG_NAME.match(html, start + 1)
        if match is None and html[start + 1 : start + 2] not in {"!", "?", "/"}:
            pieces.append("<")
            position = start + 1
            continue
        position = _after(html, ">", start)
        name = match[1].lower() if match else ""
        if name in _BLOCKS:
            pieces.append("\n")
        elif name in {"td", "th"}:
            pieces.append(" ")
        elif name in _HIDDEN and match and not match[0].startswith("/"):
            # Without its end, the rest of the page is hidden.
            position = _after(lower, f"</{name}", position)
            position = _after(html, ">", position) if position < len(html) else position
    text = _SPACES.sub(" ", "".join(pieces))
    return _MANY_BREAKS.sub("\n\n", _AROUND_BREAKS.sub("\n", text)).strip()


def _after(text: str, mark: str, start: int) -> int:
    """Return the place behind the next `mark`, or the end."""
    found = text.find(mark, start)
    return len(text) if found < 0 else found + len(mark)

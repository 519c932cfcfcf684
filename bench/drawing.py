"""Draws the CPU of turns as an SVG bar chart for light and dark pages."""

from collections.abc import Mapping, Sequence
from html import escape

from bench.report import SERVER, Row, with_floors

_WIDTH, _LEFT, _RIGHT = 720, 190, 90
_BAR, _GAP, _GROUP_GAP, _TOP = 20, 5, 22, 56
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.head { font-size: 15px; font-weight: 600 }
.kind { font-weight: 600 }
.quiet { fill: #59636e }
.floor { fill: #8c959f } .postgres { fill: #0969da } .sqlite { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .quiet { fill: #9198a1 }
  .floor { fill: #6e7681 } .postgres { fill: #4493f8 } .sqlite { fill: #3fb950 }
}
"""


def draw(kinds: Mapping[str, Sequence[Row]]) -> str:
    """Return a chart of the server's CPU for each kind of turn, each above its floor."""
    longest_ms = max(row.cpu_ms(SERVER) for rows in kinds.values() for row in rows)
    scale = (_WIDTH - _LEFT - _RIGHT) / longest_ms
    parts: list[str] = []
    y = _TOP
    for kind, rows in kinds.items():
        parts.append(_text(16, y - 6, kind, "kind"))
        for row, times_floor in with_floors(rows):
            cpu_ms = row.cpu_ms(SERVER)
            colour = row.key.rpartition("_")[2] or "floor"
            width = max(1.0, cpu_ms * scale)
            parts.append(
                f'<rect class="{colour}" x="{_LEFT}" y="{y}" '
                f'width="{width:.1f}" height="{_BAR}" rx="2"/>'
            )
            parts.append(_text(32, y + 15, row.target))
            times = "" if row.is_floor else f" ({times_floor:.1f} x)"
            parts.append(_text(_LEFT + width + 6, y + 15, f"{cpu_ms:.2f}{times}", "quiet"))
            y += _BAR + _GAP
        y += _GROUP_GAP
    title = "CPU-ms of the server for a turn (the floor is a hand-written server)"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n'
        + "\n".join([_text(16, 24, title, "head"), *parts])
        + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'

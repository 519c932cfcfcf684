"""The colours of the console can be told apart, in both themes (WCAG 2.2, 1.4.3 and 1.4.11)."""

import re

import pytest

from app.http.console_files import FOLDER

TEXT, LINE = 4.5, 3.0
SURFACES = ("paper", "surface", "sunken", "raised", "hover", "chosen")
PAIRS = [
    *[(ink, surface, TEXT) for ink in ("ink", "ink-2", "ink-3") for surface in SURFACES[:5]],
    ("ink", "chosen", TEXT),
    *[(ink, on, TEXT) for ink in ("accent", "live", "bad", "warn") for on in SURFACES[:3]],
    ("on-accent", "accent", TEXT), ("on-accent", "accent-hover", TEXT), ("on-live", "live", TEXT),
    ("on-bad", "bad", TEXT), ("paper", "ink", TEXT), ("accent-ink", "accent-soft", TEXT),
    ("live", "live-soft", TEXT), ("bad", "bad-soft", TEXT), ("ink", "warn-soft", TEXT),
    ("ink", "ins", TEXT), ("ink", "del", TEXT), ("ink", "live-soft", TEXT),
    *[(f"code-{kind}", "sunken", TEXT) for kind in ("comment", "string", "number", "word")],
    *[("line-strong", surface, LINE) for surface in SURFACES[:3]],
    *[("focus", surface, LINE) for surface in SURFACES[:5]],
    *[(f"stage-{stage}", surface, LINE) for surface in SURFACES[:2] for stage in
      ("queued", "hearing", "thinking", "writing", "voicing", "speaking")],
    *[(f"series-{number}", "paper", LINE) for number in range(6)],
]  # fmt: skip


def colours() -> dict[str, tuple[str, str]]:
    text = (FOLDER / "tokens.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", text)
    return {name: (light, dark) for name, light, dark in found}


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = map(_linear, channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_pair_of_colours_has_enough_contrast(theme: int) -> None:
    known = colours()
    weak = [
        f"{one} on {other}: {ratio:.2f}"
        for one, other, least in PAIRS
        if (ratio := contrast(known[one][theme], known[other][theme])) < least
    ]

    assert not weak


def test_colours_are_named_in_the_tokens_alone() -> None:
    css = (FOLDER / "console.css").read_text()
    strays = re.findall(r"#[0-9a-f]{3,8}\b(?=[;, )])", css)

    assert not strays
    used = set(re.findall(r"var\(--((?!hue|size)[\w-]+)\)", css))
    defined = set(re.findall(r"--([\w-]+):", (FOLDER / "tokens.css").read_text()))
    assert used <= defined

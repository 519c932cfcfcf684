"""Warnings about names that look like settings and are none."""

import re
from collections.abc import Iterable

_OF_COMPOSE = re.compile(r"EXTRA|(COMPOSE|DOCKER|BUILDKIT|POSTGRES)_.*")
"""Names that a `.env` also has for Docker Compose."""
_SIMILAR, _VERY_SIMILAR = 0.75, 0.9


def unknown_settings(
    settings: Iterable[str], env_file: Iterable[str], environment: Iterable[str]
) -> list[str]:
    """Return a warning for each name in `.env` that is no setting, with the most similar one.

    The environment has names of many programs: there only those are reported that are almost a
    setting's.
    """
    from difflib import get_close_matches

    names = {name.upper() for name in settings}
    warnings: list[str] = []
    for name in sorted({given.upper() for given in env_file} - names):
        if _OF_COMPOSE.fullmatch(name):
            continue
        similar = get_close_matches(name, names, 1, _SIMILAR)
        hint = f": did you mean {similar[0]}?" if similar else "; see .env.example."
        warnings.append(f"Warning: {name!r} in .env is not a setting{hint}")
    warnings += [
        f"Warning: the environment variable {name!r} is not a setting: did you mean {similar[0]}?"
        for name in sorted({given.upper() for given in environment} - names)
        if (similar := get_close_matches(name, names, 1, _VERY_SIMILAR))
    ]
    return warnings

"""The environment of a process of ours: named variables alone, so that no secret is among them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

_ROOT = str(Path(__file__).parents[3])
"""The folder that has the package `app`."""
_FOR_PYTHON = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
"""What an interpreter and its extension modules may need to be loaded at all."""


def minimal_environment(
    inherited: Iterable[str] = (), added: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what Python needs to import `app`, the `inherited` variables, and `added`.

    A name that ends with `*` inherits all variables that begin so; letters do not matter.
    """
    names = [name.upper() for name in (*_FOR_PYTHON, *inherited)]
    exact = {name for name in names if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in exact or (prefixes and name.upper().startswith(prefixes))
    }
    search_path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    return {
        **kept,
        "PYTHONPATH": search_path,
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **(added or {}),
    }

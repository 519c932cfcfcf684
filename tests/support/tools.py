"""Programs beside Python that some tests need: without one they are skipped, in CI they fail."""

import os
import shutil

IN_CI = os.environ.get("CI") == "true"


class ToolMissing(RuntimeError):
    """A program is not installed; the message says how to have it."""


def find_tool(name: str, *others: str) -> str:
    """Return the path of the first of these programs. Raises `ToolMissing`."""
    for each in (name, *others):
        if path := shutil.which(each):
            return path
    raise ToolMissing(f"{name} is not installed: `apt install {name}` (Debian, Ubuntu).")


def missing_tool(error: BaseException) -> ToolMissing | None:
    """Return the missing tool that an error is about, also where a task group wraps it."""
    if isinstance(error, ToolMissing):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [missing_tool(each) for each in error.exceptions]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportUnknownMemberType]
        return found[0] if all(found) else None
    return None

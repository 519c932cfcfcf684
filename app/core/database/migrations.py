"""Bringing a database to this version's revision, or back to an older one."""

from pathlib import Path
from typing import TYPE_CHECKING

from app.core.config import Settings

if TYPE_CHECKING:
    from alembic.config import Config

_PACKAGE = Path(__file__).parents[2]


class UnknownRevision(ValueError):
    """There is no such migration; the message names those that there are."""


def upgrade(settings: Settings) -> None:
    """Apply every missing migration to the database of `settings`.

    It blocks, so call it in a thread. Two processes at once are serialized by a lock. Raises the
    database's errors.
    """
    move_to(settings, None)


def move_to(settings: Settings, revision: str | None) -> None:
    """Run or undo migrations until the database is at `revision`, by default the newest. Blocks.

    Undoing loses what only the newer migrations store. Raises `UnknownRevision`.
    """
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config(settings)
    known = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]
    if revision is not None and revision not in known:
        raise UnknownRevision(
            f"There is no revision {revision[:20]!r}; there are {', '.join(reversed(known))}."
        )
    command.upgrade(config, revision or "head")
    if revision:
        command.downgrade(config, revision)  # does nothing where the database is there already


def migrations_folder() -> Path:
    """Return the folder of Alembic's environment: installed inside the package, else beside it."""
    installed = _PACKAGE / "migrations"
    return installed if installed.is_dir() else _PACKAGE.parent / "alembic"


def _config(settings: Settings) -> "Config":
    from alembic.config import Config

    config = Config(attributes={"settings": settings})
    # In an .ini file, as which Alembic reads it, a percent sign is doubled.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config

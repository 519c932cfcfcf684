"""Bringing a database to this version's revision."""

from pathlib import Path

from app.core.config import Settings

_ROOT = Path(__file__).parents[2]


def upgrade(settings: Settings) -> None:
    """Run every migration that the database of `settings` lacks; blocks, so call it in a thread.

    Two processes at once run them one after the other. Raises what the database raises.
    """
    from alembic import command
    from alembic.config import Config

    config = Config(_ROOT / "alembic.ini", attributes={"settings": settings})
    command.upgrade(config, "head")

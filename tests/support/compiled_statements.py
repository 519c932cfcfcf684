"""One cache of compiled SQL for all the databases that a test process opens, one after the other.

SQLAlchemy keeps what it compiled with an engine and its dialect, and every test opens an engine
of its own: half of a test's first request was to compile the same statements again.
"""

from typing import Any

from app.core.database import Database

_connected: dict[str, Any] = {}
"""An engine whose dialect knows its server, by the dialect's name."""


def share(database: Database) -> None:
    """Let a database that was not used yet find what others compiled."""
    engines = _engines(database)
    known = _connected.get(engines[0].dialect.name)
    if known is None:
        return
    for engine in engines:
        engine.dialect = known.dialect
        engine._compiled_cache = known._compiled_cache  # noqa: SLF001  # no public name


def keep(database: Database) -> None:
    """Let later databases find what this one compiled."""
    engine = _engines(database)[0]
    if getattr(engine.dialect, "server_version_info", None):
        _connected.setdefault(engine.dialect.name, engine)


def _engines(database: Database) -> list[Any]:
    """Return the engine that also writes, and the one that only reads."""
    reading: Any = database._reading_engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return [database.engine.sync_engine, reading.sync_engine]

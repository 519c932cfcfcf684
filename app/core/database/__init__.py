"""The database: `Database` and its transactions, and `get_db` for endpoints.

The names are imported at first use: settings need only `url`, and the models only `SCHEMA`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.core.database.database import Database
    from app.core.database.dependencies import get_database, get_db, get_reading_db
    from app.core.database.errors import CommitOutcomeUnknown, StorageUnavailable
    from app.core.database.statements import SCHEMA

__all__ = [
    "SCHEMA",
    "CommitOutcomeUnknown",
    "Database",
    "StorageUnavailable",
    "get_database",
    "get_db",
    "get_reading_db",
]

_MODULES = {
    "CommitOutcomeUnknown": "errors",
    "Database": "database",
    "SCHEMA": "statements",
    "StorageUnavailable": "errors",
    "get_database": "dependencies",
    "get_db": "dependencies",
    "get_reading_db": "dependencies",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

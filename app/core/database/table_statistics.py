"""Runs ANALYZE on tables that grow fast in a new Postgres database.

A prepared statement is planned once per connection. If its tables were empty then, the plan scans
them sequentially, and keeps doing so while they grow, until autovacuum analyzes them a minute or
more later.
"""

import logging

from sqlalchemy import exc, text

from app.core.database.database import Database
from app.core.database.statements import SCHEMA

logger = logging.getLogger(__name__)

_FIRST_TURNS = 50
_FIRST_PAGES = 4
"""A sequential scan of a smaller table takes no measurable time."""

_GROWN_TABLES = text(f"""
    SELECT format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = '{SCHEMA}' AND c.relkind = 'r'
    AND pg_relation_size(c.oid) / current_setting('block_size')::int
        > 2 * c.relpages + {_FIRST_PAGES}
    ORDER BY c.oid
""")  # noqa: S608  # constants


class TableStatistics:
    """Analyzes tables that have doubled in size since the last time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.accepted_turns = 0
        """The number of turns that this process has accepted."""
        self._refresh_at_turns = _FIRST_TURNS

    async def refresh(self) -> None:
        """Analyze grown tables, each time the number of accepted turns has doubled."""
        if self.accepted_turns < self._refresh_at_turns:
            return
        self._refresh_at_turns = 2 * self.accepted_turns
        try:
            async with self._database.connection() as connection:
                await connection.execute(text("SET LOCAL lock_timeout = '1s'"))
                for name in (await connection.scalars(_GROWN_TABLES)).all():
                    await connection.execute(text(f"ANALYZE {name}"))
        except exc.DBAPIError as error:  # another process analyzes it, or the role may not
            logger.debug("ANALYZE was skipped: %s", type(error.orig).__name__)

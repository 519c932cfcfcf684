"""What Postgres knows of a young database, by which it plans.

A statement is planned once for each connection. Where its tables were empty then, it reads them
whole, and goes on so while they grow: until autovacuum's first round, a minute or more later.
"""

import logging

from sqlalchemy import exc, text

from app.core.database import SCHEMA, Database

logger = logging.getLogger(__name__)

_FIRST_TURNS = 50
_FIRST_PAGES = 4
"""Smaller tables are read whole in no time."""

_GROWN = text(f"""
    SELECT format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = '{SCHEMA}' AND c.relkind = 'r'
    AND pg_relation_size(c.oid) / current_setting('block_size')::int
        > 2 * c.relpages + {_FIRST_PAGES}
    ORDER BY c.oid
""")  # noqa: S608  # our own words


class Statistics:
    """Has tables analyzed that are twice as large as the last time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.turns = 0
        """How many this server has accepted."""
        self._due = _FIRST_TURNS

    async def refresh(self) -> None:
        """Analyze what has grown, once twice as many turns are accepted as the last time."""
        if self.turns < self._due:
            return
        self._due = 2 * self.turns
        try:
            async with self._database.connection() as connection:
                await connection.execute(text("SET LOCAL lock_timeout = '1s'"))
                for name in (await connection.scalars(_GROWN)).all():
                    await connection.execute(text(f"ANALYZE {name}"))
        except exc.DBAPIError as error:  # somebody else is at it, or this role may not
            logger.debug("no table was analyzed: %s", type(error.orig).__name__)

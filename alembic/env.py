"""The Alembic environment; SQLite and PostgreSQL share one history of migrations."""

import asyncio
import logging

from alembic import context
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.sql.schema import SchemaConst

from app.core.config import load_settings
from app.core.database import SCHEMA, Database
from app.core.private_files import protect_sqlite_files
from app.models import Base

_MIGRATION_LOCK = 7046029254386353131
"""The key of the advisory lock with which replicas that start together migrate one by one."""


def _is_compared(_item: object, name: str | None, kind: str, *_: object) -> bool:
    """Exclude the full-text index from comparison: it is not in the models, as SQLite lacks it."""
    return (kind, name) != ("index", "ix_messages_search")


def _migrate(connection: Connection) -> None:
    on_postgres = connection.dialect.name == "postgresql"
    if on_postgres:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    context.configure(
        connection=connection,
        target_metadata=Base.metadata if on_postgres else _without_schema(Base.metadata),
        version_table_schema=SCHEMA if on_postgres else None,
        include_schemas=on_postgres,
        include_object=_is_compared,
        transaction_per_migration=False,
    )
    context.run_migrations()
    if on_postgres:
        _protect(connection, "protect_tables()")
        _protect(connection, "protect_functions()")


def _protect(connection: Connection, function: str) -> None:
    """Apply the policies to tables that later migrations created, and to a role created later."""
    if connection.scalar(text(f"SELECT to_regprocedure('{SCHEMA}.{function}')")):
        connection.execute(text(f"SELECT {SCHEMA}.{function}"))


def _without_schema(metadata: MetaData) -> MetaData:
    bare = MetaData()
    for table in metadata.tables.values():
        table.to_metadata(bare, schema=None, referred_schema_fn=lambda *_: SchemaConst.BLANK_SCHEMA)
    return bare


async def _run() -> None:
    settings = context.config.attributes.get("settings")
    if settings is None:  # called as the `alembic` command
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        settings = load_settings()
    database = Database.from_settings(settings)
    if database.url.sqlite_path:
        protect_sqlite_files(database.url.sqlite_path)
    try:
        async with database.connection() as connection:
            await connection.run_sync(_migrate)
    finally:
        await database.dispose()


if context.is_offline_mode():
    raise SystemExit(
        "Offline SQL is not supported: run `alembic upgrade head` with DATABASE_URL set."
    )
asyncio.run(_run())

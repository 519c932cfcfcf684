"""The database: reachable, at the right revision, with the right clock and role."""

import os
import stat
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.config import AppEnv, Settings
from app.core.database import Database
from app.core.database.revision import REVISION, current_revision
from app.core.database.workspace_scope import APP_ROLE, ROLE_EXISTS_SQL
from app.core.logging import describe_cause
from app.doctor.checks import Check, broken, ok, warning
from app.doctor.tool_checks import check_tools

_CLOCK_TOLERANCE_SECONDS = 2.0


async def check_database(settings: Settings, *, looks_at_tools: bool = True) -> Sequence[Check]:
    """Look at the database that the settings name; nothing is made or changed.

    Tools, secrets and MCP servers are looked at where it is at this version's revision.
    """
    url = settings.parsed_database_url
    if url.sqlite_path and not url.sqlite_path.exists():
        return [ok("database", f"{url}: not there yet; the first start makes it")]
    checks: list[Check] = [_sqlite_permissions(url.sqlite_path)] if url.sqlite_path else []
    database = Database.from_settings(settings)
    revision: str | None = None
    try:
        async with _connected(database) as connection:
            checks.append(ok("database", f"{url}: reachable"))
            if not url.is_sqlite:
                checks += await _postgres_checks(connection)
        revision = await current_revision(database)
        checks.append(_revision(settings, revision))
    except Exception as error:  # noqa: BLE001  # also what no server could go on with
        cause = describe_cause(error) or type(error).__name__
        checks.append(
            broken(
                "database",
                f"{url}: cannot be used ({cause})",
                "Check host, port, user and password in DATABASE_URL, and whether the server runs.",
            )
        )
    else:
        if looks_at_tools and revision == REVISION:
            checks += await check_tools(settings, database)
    finally:
        await database.dispose()
    return checks


@asynccontextmanager
async def _connected(database: Database) -> AsyncGenerator[AsyncConnection]:
    async with database.reading() as db:
        yield await db.connection()


async def _postgres_checks(connection: AsyncConnection) -> list[Check]:
    raw: Any = (await connection.get_raw_connection()).driver_connection
    backend_pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    version = await connection.scalar(text("SHOW server_version"))
    has_pooler = backend_pid != raw.get_server_pid()
    behind = "behind a transaction pooler" if has_pooler else "connected directly"
    return [
        ok("database server", f"PostgreSQL {version}, {behind}"),
        await _clock(connection),
        await _role(connection),
    ]


async def _clock(connection: AsyncConnection) -> Check:
    before = time.time()
    database_time: datetime | None = await connection.scalar(text("SELECT clock_timestamp()"))
    middle = (before + time.time()) / 2
    skew_seconds = abs(database_time.timestamp() - middle) if database_time else 0
    if skew_seconds <= _CLOCK_TOLERANCE_SECONDS:
        return ok("clock", f"{skew_seconds:.1f} s apart from the database's")
    return warning(
        "clock",
        f"{skew_seconds:.0f} s apart from the database's",
        "Synchronise both clocks (NTP): leases, limits and expiry depend on them.",
    )


async def _role(connection: AsyncConnection) -> Check:
    if await connection.scalar(text(ROLE_EXISTS_SQL)):
        return ok("row policies", f"the role {APP_ROLE} is there")
    return warning(
        "row policies",
        f"transactions cannot take on the role {APP_ROLE}",
        "Without it the database does not keep workspaces apart, only the queries do: let the "
        "database user create roles, or see docs/security.md, and run `agent-platform migrate`.",
    )


def _revision(settings: Settings, revision: str | None) -> Check:
    if revision == REVISION:
        return ok("revision", revision)
    finding = f"{revision or 'empty'}, and this version needs {REVISION}"
    if revision and revision > REVISION:  # four digits each
        return broken("revision", finding, "A newer version was here: start that one.")
    if settings.app_env is AppEnv.DEVELOPMENT:
        return ok("revision", f"{finding}; the next start upgrades it")
    return broken("revision", finding, "Run `agent-platform migrate`.")


def _sqlite_permissions(path: Path) -> Check:
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        return broken(
            "database file",
            f"{path}: this user cannot write it, or files beside it",
            "Start the server as the owner of the folder, or change the owner.",
        )
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) and os.name == "posix":
        return warning(
            "database file",
            f"{path}: other users of this machine can read it",
            f"Run `chmod 600 {path}*`.",
        )
    return ok("database file", f"{path}: readable and writable by its owner alone")

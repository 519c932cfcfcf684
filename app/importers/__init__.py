"""`agent-platform import`: conversations and agents of other systems, from a file of any size.

Files are streamed. Each session is one transaction, and its id is made of the source's id, so that
a second run, also after an interruption, stores only what is missing. No model is called, and
nothing is billed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import anyio

from app.core.config import Settings, load_settings
from app.core.database import Database
from app.core.database.revision import RevisionCheck
from app.core.errors import AppError, StartRefused
from app.core.security import ADMIN, Caller
from app.importers import jsonl, letta, openai_threads
from app.importers.progress import ProgressBar
from app.importers.records import ImportReport, Source, SourceInvalid
from app.importers.writer import Writer
from app.models import Workspace
from app.services.crud import get_agent
from app.services.identity import WorkspaceNotFound, audit

FORMATS: dict[str, Callable[[Path, ImportReport], Iterator[Source]]] = {
    "openai-threads": openai_threads.read,
    "letta": letta.read,
    "jsonl": jsonl.read,
}


def run(options: argparse.Namespace) -> int:
    """Import a file, and print what was kept and skipped; return the process's exit status."""
    report = ImportReport()
    try:
        anyio.run(_import, options, _checked_settings(options.file), report)
    except StartRefused as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    except SourceInvalid as error:
        sys.stdout.write(report.text(dry_run=options.dry_run))
        sys.stderr.write(f"{error}\n")
        return os.EX_DATAERR
    except AppError as error:
        sys.stdout.write(report.text(dry_run=options.dry_run))
        sys.stderr.write(f"{error.detail}\n")
        return os.EX_TEMPFAIL if error.retry_after_seconds else os.EX_DATAERR
    sys.stdout.write(report.text(dry_run=options.dry_run))
    return 0


def _checked_settings(path: Path) -> Settings:
    """Return the settings. Raises `StartRefused` where the file or the database is missing."""
    if not path.exists():
        raise StartRefused(f"There is no file {path}.")
    settings = load_settings()
    database_path = settings.parsed_database_url.sqlite_path
    if database_path and not database_path.exists():
        raise StartRefused(
            f"There is no database file {database_path.absolute()}: run this in the folder of the "
            "server, or set DATA_DIR or DATABASE_URL as for the server."
        )
    return settings


async def _import(options: argparse.Namespace, settings: Settings, report: ImportReport) -> None:
    path: Path = options.file
    database = Database.from_settings(settings)
    try:
        await RevisionCheck(database).require()
        caller = await _caller(database, options)
        writer = Writer(database, caller, report, options.agent, dry_run=options.dry_run)
        with ProgressBar(path) as progress:
            for source in FORMATS[options.format](path, report):
                await writer.store(options.format, source)
                progress.show(report)
        if not options.dry_run:
            async with database.transaction() as db:
                action = audit.Action.SESSIONS_IMPORTED
                audit.record(db, caller, action, options.format, **report.counts)
    finally:
        await database.dispose()


async def _caller(database: Database, options: argparse.Namespace) -> Caller:
    """Return the operator in the workspace. Raises `WorkspaceNotFound` and `AgentNotFound`."""
    workspace_id: UUID = options.workspace
    async with database.reading() as db:
        if await db.get(Workspace, workspace_id) is None:
            raise WorkspaceNotFound(
                f"There is no workspace {workspace_id}: "
                "run `agent-platform workspaces list` for the ids."
            )
        if options.agent is not None:
            await get_agent(db, workspace_id, options.agent)
    return replace(ADMIN, workspace_id=workspace_id)

"""`agent-platform keys` and `workspaces`: straight on the database, beside a server or not."""

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import anyio
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import load_settings
from app.core.database import Database
from app.core.errors import AppError
from app.core.limits import DEFAULT_LIMITS
from app.core.schema_gate import SchemaGate
from app.core.security import ADMIN, ALL_PERMISSIONS, Caller, Permission
from app.models import ApiKey, Workspace, utc_now
from app.services.identity import CannotGrant, WorkspaceNotFound, api_keys, audit, workspaces

_MOST = 1000


def run(options: argparse.Namespace) -> int:
    """Run one of these commands; return the process's exit status."""
    command = _COMMANDS[options.command, options.action]
    try:
        lines = anyio.run(_in_transaction, command, options)
    except AppError as error:
        sys.stderr.write(f"{error.detail}\n")
        return os.EX_TEMPFAIL if error.retry_after_seconds else os.EX_DATAERR
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


Command = Callable[[AsyncSession, argparse.Namespace], Awaitable[Sequence[str]]]


async def _in_transaction(command: Command, options: argparse.Namespace) -> Sequence[str]:
    database = Database.from_settings(load_settings())
    try:
        await SchemaGate(database).require()
        async with database.transaction() as db:
            return await command(db, options)
    finally:
        await database.dispose()


async def _caller(db: AsyncSession, options: argparse.Namespace) -> Caller:
    if await db.get(Workspace, options.workspace) is None:
        raise WorkspaceNotFound("There is no such workspace.")
    return replace(ADMIN, workspace_id=options.workspace)


async def _create_key(db: AsyncSession, options: argparse.Namespace) -> Sequence[str]:
    caller = await _caller(db, options)
    days: int | None = options.expires_days
    scopes: list[str] = options.scope or sorted(ALL_PERMISSIONS)
    if unknown := set(scopes) - ALL_PERMISSIONS:
        raise CannotGrant(
            f"There is no scope {min(unknown)!r}: {', '.join(sorted(ALL_PERMISSIONS))}"
        )
    wanted = api_keys.NewKey(
        name=options.name[:200],
        scopes=[Permission(scope) for scope in scopes],
        expires_at=None if days is None else utc_now() + timedelta(days=days),
        limits=DEFAULT_LIMITS,
    )
    key, credential = await api_keys.create(db, caller, wanted)
    audit.record(db, caller, audit.Action.KEY_CREATED, key.id, name=key.name, scopes=key.scopes)
    return [credential.text]


async def _list_keys(db: AsyncSession, options: argparse.Namespace) -> Sequence[str]:
    caller = await _caller(db, options)
    keys = await api_keys.list_keys(db, caller, after_id=None, limit=_MOST)
    return [f"{key.id}  {_state(key):8}  {key.name}  {','.join(key.scopes)}" for key in keys]


async def _revoke_key(db: AsyncSession, options: argparse.Namespace) -> Sequence[str]:
    caller = await _caller(db, options)
    key = await api_keys.revoke(db, caller, options.id)
    audit.record(db, caller, audit.Action.KEY_REVOKED, key.id)
    return [f"{key.id} is revoked."]


async def _rotate_key(db: AsyncSession, options: argparse.Namespace) -> Sequence[str]:
    caller = await _caller(db, options)
    grace = timedelta(seconds=max(0, options.grace_seconds))
    key, credential = await api_keys.rotate(db, caller, options.id, grace)
    audit.record(
        db, caller, audit.Action.KEY_ROTATED, key.id, grace_seconds=int(grace.total_seconds())
    )
    return [credential.text]


async def _create_workspace(db: AsyncSession, options: argparse.Namespace) -> Sequence[str]:
    workspace = await workspaces.create(db, options.name[:200])
    inside = replace(ADMIN, workspace_id=workspace.id)
    audit.record(db, inside, audit.Action.WORKSPACE_CREATED, workspace.id, name=workspace.name)
    return [str(workspace.id)]


async def _list_workspaces(db: AsyncSession, _options: argparse.Namespace) -> Sequence[str]:
    found = await workspaces.list_all(db, before_id=None, limit=_MOST)
    return [f"{workspace.id}  {workspace.name}" for workspace in found]


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= utc_now() else "live"


_COMMANDS: dict[tuple[str, str], Command] = {
    ("keys", "create"): _create_key,
    ("keys", "list"): _list_keys,
    ("keys", "revoke"): _revoke_key,
    ("keys", "rotate"): _rotate_key,
    ("workspaces", "create"): _create_workspace,
    ("workspaces", "list"): _list_workspaces,
}

"""The commands `agent-platform keys`, `workspaces` and `secrets`.

They use the database directly, so they work whether a server is running or not.
"""

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
from app.core.database.revision import RevisionCheck
from app.core.errors import AppError, StartRefused
from app.core.limits import KeyLimits
from app.core.sealed_errors import SecretsKeyMissing
from app.core.security import ADMIN, ALL_PERMISSIONS, Caller, Permission
from app.models import ApiKey, Workspace, utc_now
from app.services.identity import CannotGrant, WorkspaceNotFound, api_keys, audit, workspaces
from app.services.tools import secrets
from app.services.tools.key_ring import KeyRing

_MOST = 1000
_DEFAULT_SCOPES = (
    Permission.AGENTS_READ,
    Permission.SESSIONS_READ,
    Permission.SESSIONS_WRITE,
    Permission.TURNS_READ,
    Permission.TURNS_WRITE,
)
"""The least with which a server can hold conversations."""


def run(options: argparse.Namespace) -> int:
    """Run a `keys`, `workspaces` or `secrets` command; return the process's exit status."""
    command = _COMMANDS[options.command, options.action]
    try:
        lines = anyio.run(_in_transaction, command, options)
    except StartRefused as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    except AppError as error:
        sys.stderr.write(f"{error.detail}\n")
        return os.EX_TEMPFAIL if error.retry_after_seconds else os.EX_DATAERR
    sys.stdout.writelines(f"{printable(line)}\n" for line in lines)
    return 0


def printable(text: str) -> str:
    """Escape what a terminal would act on or hide: names are chosen by others than the operator."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


Command = Callable[[AsyncSession, argparse.Namespace], Awaitable[Sequence[str]]]


async def _in_transaction(command: Command, options: argparse.Namespace) -> Sequence[str]:
    settings = load_settings()
    path = settings.parsed_database_url.sqlite_path
    if path and not path.exists():
        raise StartRefused(
            f"There is no database file {path.absolute()}: run this in the folder of the server, "
            "or set DATA_DIR or DATABASE_URL as for the server."
        )
    database = Database.from_settings(settings)
    try:
        await RevisionCheck(database).require()
        async with database.transaction() as db:
            return await command(db, options)
    finally:
        await database.dispose()


async def _caller(db: AsyncSession, options: argparse.Namespace) -> Caller:
    if await db.get(Workspace, options.workspace) is None:
        raise WorkspaceNotFound(
            f"There is no workspace {options.workspace}: "
            "run `agent-platform workspaces list` for the ids."
        )
    return replace(ADMIN, workspace_id=options.workspace)


async def _create_key(db: AsyncSession, options: argparse.Namespace) -> Sequence[str]:
    caller = await _caller(db, options)
    days: int | None = options.expires_days
    scopes: list[str] = options.scope or list(_DEFAULT_SCOPES)
    if unknown := set(scopes) - ALL_PERMISSIONS:
        raise CannotGrant(
            f"There is no scope {min(unknown)!r}. Use one of: {', '.join(sorted(ALL_PERMISSIONS))}."
        )
    new_key = api_keys.NewKey(
        name=options.name[:200],
        scopes=[Permission(scope) for scope in scopes],
        expires_at=None if days is None else utc_now() + timedelta(days=days),
        limits=KeyLimits(),
    )
    key, credential = await api_keys.create(db, caller, new_key)
    audit.record(db, caller, audit.Action.KEY_CREATED, key.id, name=key.name, scopes=key.scopes)
    if not options.scope:
        sys.stderr.write(
            f"Scopes: {' '.join(scopes)} (enough to hold conversations; --scope chooses others).\n"
        )
    return [credential.text]


async def _list_keys(db: AsyncSession, options: argparse.Namespace) -> Sequence[str]:
    caller = await _caller(db, options)
    keys = await api_keys.list_keys(db, caller, after_id=None, limit=_MOST)
    return [
        f"{key.id}  {_state(key):8}  {_printable(key.name)}  {','.join(key.scopes)}" for key in keys
    ]


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
    admin = replace(ADMIN, workspace_id=workspace.id)
    audit.record(db, admin, audit.Action.WORKSPACE_CREATED, workspace.id, name=workspace.name)
    return [str(workspace.id)]


async def _list_workspaces(db: AsyncSession, _options: argparse.Namespace) -> Sequence[str]:
    rows = await workspaces.list_all(db, before_id=None, limit=_MOST)
    return [f"{workspace.id}  {_printable(workspace.name)}" for workspace in rows]


async def _rotate_secrets(db: AsyncSession, _options: argparse.Namespace) -> Sequence[str]:
    keys = KeyRing.from_settings(load_settings(warn=False))
    try:
        count = await secrets.rotate(db, keys)
    except SecretsKeyMissing:
        raise SecretsKeyMissing(
            "SECRETS_KEY does not open every stored secret: name the new key first and the old "
            "ones after it, separated by commas."
        ) from None
    audit.record(db, ADMIN, audit.Action.SECRETS_ROTATED, "secrets", count=count)
    return [f"{count} secrets are now under the first key of SECRETS_KEY."]


def _printable(name: str) -> str:
    """Escape what a terminal would obey."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in name)


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= utc_now() else "live"


_COMMANDS: dict[tuple[str, str], Command] = {
    ("keys", "create"): _create_key,
    ("keys", "list"): _list_keys,
    ("keys", "revoke"): _revoke_key,
    ("keys", "rotate"): _rotate_key,
    ("secrets", "rotate"): _rotate_secrets,
    ("workspaces", "create"): _create_workspace,
    ("workspaces", "list"): _list_workspaces,
}

"""Store, list, delete and re-encrypt secrets; their values leave only in requests of tools.

Each function works in the caller's transaction `db` and never commits.
"""

import base64
import secrets as random_source
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.hosts import is_bound_to
from app.core.value_objects import value_object
from app.models import McpServer, StoredSecret, Tool, utc_now
from app.services.tools.errors import (
    SecretHostMismatch,
    SecretNotFound,
    SecretToDeleteNotFound,
    ToolInvalid,
)
from app.services.tools.key_ring import KeyRing

MOST_SECRETS = 500
"""Of a workspace."""
SIGNING_PREFIX = "signing/"
"""Of the names of secrets that sign the requests of a tool."""
_SIGNING_KEY_BYTES = 32


@value_object(frozen=True, slots=True)
class SecretUse:
    """A secret without its value, and the tools that use it."""

    name: str
    hosts: Sequence[str]
    created_at: datetime
    updated_at: datetime
    used_by: Sequence[UUID]
    """Ids of tools and MCP servers."""


async def put_secret(  # noqa: PLR0913, PLR0917  # what a secret is
    db: AsyncSession, keys: KeyRing, workspace_id: UUID, name: str, value: str, hosts: list[str]
) -> tuple[StoredSecret, bool]:
    """Store a secret, or replace its value and hosts; return it and whether it is new.

    Raises `SecretsKeyMissing`, and `ToolInvalid` where the workspace has too many.
    """
    sealer = keys.sealer()
    sealed = sealer.seal(value.encode(), workspace_id, name)
    stored = await db.get(StoredSecret, (workspace_id, name), with_for_update=True)
    if stored:
        stored.sealed, stored.key_id, stored.hosts = sealed, sealer.key_id, hosts
        stored.updated_at = utc_now()
        await db.flush()
        return stored, False
    names = await db.scalars(_names(workspace_id))
    if len(names.all()) >= MOST_SECRETS:
        raise ToolInvalid(f"A workspace has at most {MOST_SECRETS} secrets: delete unused ones.")
    stored = StoredSecret(
        workspace_id=workspace_id, name=name, sealed=sealed, key_id=sealer.key_id, hosts=hosts
    )
    db.add(stored)
    await db.flush()
    return stored, True


async def list_secrets(
    db: AsyncSession, workspace_id: UUID, *, after: str | None, limit: int
) -> list[SecretUse]:
    """Return up to `limit` secrets whose names follow `after`, by name."""
    query = _of_users(workspace_id).order_by(StoredSecret.name).limit(limit)
    if after is not None:
        query = query.where(StoredSecret.name > after)
    users = await _users(db, workspace_id)
    return [_with_users(stored, users) for stored in await db.scalars(query)]


async def get_secret(db: AsyncSession, stored: StoredSecret) -> SecretUse:
    """Return a stored secret with the tools that use it."""
    return _with_users(stored, await _users(db, stored.workspace_id))


async def delete_secret(db: AsyncSession, workspace_id: UUID, name: str) -> None:
    """Delete a secret, used or not. Raises `SecretToDeleteNotFound`."""
    query = _of_users(workspace_id).where(StoredSecret.name == name)
    stored = (await db.scalars(query)).one_or_none()
    if stored is None:
        raise SecretToDeleteNotFound("No secret with this name exists in this workspace.")
    await db.delete(stored)


async def require_bound_secrets(
    db: AsyncSession, workspace_id: UUID, names: frozenset[str], url: str
) -> None:
    """Raise `SecretNotFound` or `SecretHostMismatch` unless all `names` may go to `url`."""
    if not names:
        return
    query = _of_users(workspace_id).where(StoredSecret.name.in_(names))
    stored = {each.name: each for each in await db.scalars(query)}
    for name in sorted(names):
        if name not in stored:
            raise SecretNotFound(
                f"There is no secret {name}: store it first, with the hosts it may be sent to."
            )
        if not is_bound_to(stored[name].hosts, url):
            raise SecretHostMismatch(
                f"The secret {name} may not be sent to the host of this URL: change its hosts "
                "with `POST /secrets`, or the URL."
            )


async def make_signing_secret(
    db: AsyncSession, keys: KeyRing, workspace_id: UUID, tool_id: UUID
) -> str:
    """Make and store the secret that signs a tool's requests; return it as `whsec_...`.

    Raises `SecretsKeyMissing`.
    """
    sealer = keys.sealer()
    name = f"{SIGNING_PREFIX}{tool_id}"
    key = random_source.token_bytes(_SIGNING_KEY_BYTES)
    sealed = sealer.seal(key, workspace_id, name)
    db.add(
        StoredSecret(
            workspace_id=workspace_id, name=name, sealed=sealed, key_id=sealer.key_id, hosts=[]
        )
    )
    await db.flush()
    return f"whsec_{base64.b64encode(key).decode()}"


async def rotate(db: AsyncSession, keys: KeyRing) -> int:
    """Seal every secret of every workspace with the first key; return how many were not yet.

    Raises `SecretsKeyMissing` where no key opens one; then nothing may be committed.
    """
    sealer = keys.sealer()
    query = select(StoredSecret).where(StoredSecret.key_id != sealer.key_id).with_for_update()
    stored = (await db.scalars(query)).all()
    for each in stored:
        value = sealer.open(each.sealed, each.workspace_id, each.name)
        each.sealed = sealer.seal(value, each.workspace_id, each.name)
        each.key_id = sealer.key_id
    await db.flush()
    return len(stored)


async def used_key_ids(db: AsyncSession) -> frozenset[str]:
    """Return the names of the keys that stored secrets are sealed with."""
    return frozenset(await db.scalars(select(StoredSecret.key_id).distinct()))


def _names(workspace_id: UUID) -> Select[str]:
    return (
        select(StoredSecret.name)
        .where(StoredSecret.workspace_id == workspace_id)
        .where(StoredSecret.name.not_like("%/%"))
    )


def _of_users(workspace_id: UUID) -> Select[StoredSecret]:
    return (
        select(StoredSecret)
        .where(StoredSecret.workspace_id == workspace_id)
        .where(StoredSecret.name.not_like("%/%"))
    )


async def _users(db: AsyncSession, workspace_id: UUID) -> Mapping[str, list[UUID]]:
    """Return the tools and MCP servers that use each secret."""
    query = select(Tool.id, Tool.secret_names).where(
        Tool.workspace_id == workspace_id, Tool.archived_at.is_(None)
    )
    users: dict[str, list[UUID]] = {}
    for tool_id, names in await db.execute(query.order_by(Tool.id)):
        for name in names:
            users.setdefault(name, []).append(tool_id)
    servers = select(McpServer.id, McpServer.secret_names, McpServer.settings).where(
        McpServer.workspace_id == workspace_id, McpServer.archived_at.is_(None)
    )
    for server_id, names, settings in await db.execute(servers.order_by(McpServer.id)):
        oauth: dict[str, str | None] | None = settings.get("oauth")
        client_secret = oauth["client_secret"] if oauth else None
        for name in {*names, *filter(None, [client_secret])}:
            users.setdefault(name, []).append(server_id)
    return users


def _with_users(stored: StoredSecret, users: Mapping[str, list[UUID]]) -> SecretUse:
    return SecretUse(
        stored.name,
        stored.hosts,
        stored.created_at,
        stored.updated_at,
        users.get(stored.name, []),
    )

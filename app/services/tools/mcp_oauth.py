"""Access tokens for MCP servers that want OAuth: asked for, sealed, and renewed by one at a time.

What a server has granted is one sealed value of the table of secrets, `oauth/{server_id}`, which no
tool can name. It is JSON: what `McpClient.authorize` returned, `pending` while a person is asked,
and `renewing_until` while somebody renews it.
"""

import secrets as comparison
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
import orjson
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.models import StoredSecret, utc_now
from app.services.mcp_port import (
    McpAuthorization,
    McpClient,
    McpError,
    McpGranted,
    McpOAuth,
    McpTarget,
)
from app.services.tools.errors import McpUnauthorized
from app.services.tools.key_ring import KeyRing
from app.services.tools.mcp_definitions import ServerSettings
from app.services.tools.mcp_failures import request_error
from app.services.tools.secret_store import SecretStore

_PREFIX = "oauth/"
_STEP_SECONDS = 30.0
_RENEW_BEFORE_SECONDS = 30.0
"""An access token is renewed so long before its end."""
_LEASE_SECONDS = 45.0
"""Whoever renews a token and has not done so by then has ended."""
_POLL_SECONDS = 0.2
_PENDING_SECONDS = 600.0
_PENDING, _LEASE = "pending", "renewing_until"
_NOT_AUTHORIZED = (
    "Nobody has authorized this server to use the MCP server, or not any more: "
    "`POST /mcp-servers/{id}/authorization` begins that."
)
_NOT_DONE = "The MCP server gave no access."
Grant = dict[str, Any]


class McpAuthorizer:
    """Gets access tokens and keeps them."""

    def __init__(
        self, database: Database, client: McpClient, secrets: SecretStore, keys: KeyRing
    ) -> None:
        self._database = database
        self._client = client
        self._secrets = secrets
        self._keys = keys

    async def headers(
        self,
        workspace_id: UUID,
        server_id: UUID | None,
        settings: ServerSettings,
        *,
        refused: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Return the header with an access token; empty for a server without OAuth.

        `refused` is a header whose token was refused, so another one is got. For a server that is
        not stored yet, `server_id` is `None`. Raises `McpUnauthorized`, what `request_error`
        makes, and what the secrets raise.
        """
        oauth = settings.get("oauth")
        if oauth is None:
            return {}
        if server_id is None:
            grant = await self._renewed(workspace_id, settings, {})
        else:
            grant = await self._valid_grant(workspace_id, server_id, settings, refused or {})
        return _header_of(grant)

    async def begin(
        self, workspace_id: UUID, server_id: UUID, settings: ServerSettings, redirect_uri: str
    ) -> tuple[str, datetime]:
        """Return the URL of the page where a person authorizes this server, and until when."""
        granted = await self._step(
            workspace_id, settings, "begin", "The authorization was not begun.", redirect_uri
        )
        ends_at = time.time() + _PENDING_SECONDS
        async with self._database.transaction() as db:
            grant = await self._load(db, workspace_id, server_id, for_update=True) or {}
            pending = {**granted.grant, "ends_at": ends_at}
            await self._store(db, workspace_id, server_id, {**grant, _PENDING: pending})
        return granted.url or "", datetime.fromtimestamp(ends_at, UTC)

    async def finish(
        self,
        workspace_id: UUID,
        server_id: UUID,
        settings: ServerSettings,
        answer: Mapping[str, Any],
    ) -> None:
        """Take what the authorization server sent a person back with: `code`, `state`, `iss`.

        An authorization is finished once. Raises `McpUnauthorized`.
        """
        async with self._database.transaction() as db:
            grant = await self._load(db, workspace_id, server_id, for_update=True) or {}
            pending: Grant | None = grant.pop(_PENDING, None)
            is_expected = pending is not None and comparison.compare_digest(
                str(pending["state"]).encode(), str(answer["state"]).encode()
            )
            if not is_expected or pending is None or pending["ends_at"] < time.time():
                message = "This answers no authorization that was begun within the last 10 minutes."
                raise McpUnauthorized(message)
            await self._store(db, workspace_id, server_id, grant)
        granted = await self._step(
            workspace_id,
            settings,
            "finish",
            "The authorization was not finished.",
            grant=pending,
            code=answer["code"],
            issuer=answer["iss"],
        )
        async with self._database.transaction() as db:
            await self._store(db, workspace_id, server_id, dict(granted.grant))

    async def _valid_grant(
        self,
        workspace_id: UUID,
        server_id: UUID,
        settings: ServerSettings,
        refused: Mapping[str, str],
    ) -> Grant:
        with anyio.move_on_after(_STEP_SECONDS):
            while True:
                async with self._database.reading() as db:
                    grant = await self._load(db, workspace_id, server_id)
                if grant and _is_valid(grant) and _header_of(grant) != refused:
                    return grant
                if settings["oauth"]["grant"] != "client_credentials":
                    _require_renewable(grant)
                if await self._claim(workspace_id, server_id, grant):
                    return await self._renew(workspace_id, server_id, settings, grant or {})
                await anyio.sleep(_POLL_SECONDS)  # somebody else renews it
        raise McpUnauthorized("The access token of the MCP server was not renewed in time.")

    async def _claim(self, workspace_id: UUID, server_id: UUID, seen: Grant | None) -> bool:
        """Take it on to renew a grant, unless another has, or has done so meanwhile."""
        try:
            async with self._database.transaction() as db:
                grant = await self._load(db, workspace_id, server_id, for_update=True)
                if grant != seen or (grant or {}).get(_LEASE, 0) > time.time():
                    return False
                lease = {_LEASE: time.time() + _LEASE_SECONDS}
                await self._store(db, workspace_id, server_id, {**(grant or {}), **lease})
        except IntegrityError:  # another made the row
            return False
        return True

    async def _renew(
        self, workspace_id: UUID, server_id: UUID, settings: ServerSettings, grant: Grant
    ) -> Grant:
        """Renew a grant that was claimed. Where that fails, what there is is kept."""
        renewed = grant
        try:
            renewed = await self._renewed(workspace_id, settings, grant)
        finally:
            with anyio.CancelScope(shield=True):
                async with self._database.transaction() as db:
                    now = await self._load(db, workspace_id, server_id, for_update=True) or {}
                    pending = {_PENDING: now[_PENDING]} if _PENDING in now else {}
                    kept = {key: each for key, each in renewed.items() if key != _LEASE}
                    await self._store(db, workspace_id, server_id, {**kept, **pending})
        return renewed

    async def _renewed(self, workspace_id: UUID, settings: ServerSettings, grant: Grant) -> Grant:
        return dict((await self._step(workspace_id, settings, "renew", grant=grant)).grant)

    async def _step(
        self,
        workspace_id: UUID,
        settings: ServerSettings,
        step: str,
        not_done: str = _NOT_DONE,
        redirect_uri: str | None = None,
        **more: Any,
    ) -> McpGranted:
        oauth = settings["oauth"]
        secret, hosts = None, ()
        if oauth["client_secret"]:
            secret, hosts = await self._secrets.value_and_hosts(
                workspace_id, oauth["client_secret"], oauth["issuer"]
            )
        client = McpOAuth(
            oauth["grant"],
            oauth["client_id"],
            secret,
            hosts,
            oauth["client_auth"],
            oauth["issuer"],
            oauth["scope"],
        )
        target = McpTarget(workspace_id, settings["url"])
        asked = McpAuthorization(target, client, step, redirect_uri=redirect_uri, **more)
        try:
            return await self._client.authorize(asked, _STEP_SECONDS)
        except McpError as error:
            raise request_error(error, not_done) from None

    async def _load(
        self, db: AsyncSession, workspace_id: UUID, server_id: UUID, *, for_update: bool = False
    ) -> Grant | None:
        name = f"{_PREFIX}{server_id}"
        stored = await db.get(
            StoredSecret, (workspace_id, name), with_for_update=for_update, populate_existing=True
        )
        if stored is None:
            return None
        return orjson.loads(self._keys.sealer().open(stored.sealed, workspace_id, name))

    async def _store(
        self, db: AsyncSession, workspace_id: UUID, server_id: UUID, grant: Grant
    ) -> None:
        name, sealer = f"{_PREFIX}{server_id}", self._keys.sealer()
        sealed = sealer.seal(orjson.dumps(grant), workspace_id, name)
        stored = await db.get(StoredSecret, (workspace_id, name))
        if stored is None:
            stored = StoredSecret(workspace_id=workspace_id, name=name, hosts=[])
            db.add(stored)
        stored.sealed, stored.key_id, stored.updated_at = sealed, sealer.key_id, utc_now()
        await db.flush()


async def delete_grant(db: AsyncSession, workspace_id: UUID, server_id: UUID) -> None:
    """Forget what a server has granted, if anything."""
    stored = await db.get(StoredSecret, (workspace_id, f"{_PREFIX}{server_id}"))
    if stored is not None:
        await db.delete(stored)


def _is_valid(grant: Grant) -> bool:
    ends_at = grant.get("expires_at")
    return bool(grant.get("tokens")) and (
        ends_at is None or ends_at > time.time() + _RENEW_BEFORE_SECONDS
    )


def _require_renewable(grant: Grant | None) -> None:
    tokens: Grant | None = (grant or {}).get("tokens")
    if not tokens or not tokens.get("refresh_token"):
        raise McpUnauthorized(_NOT_AUTHORIZED)


def _header_of(grant: Grant) -> dict[str, str]:
    return {"Authorization": f"Bearer {grant['tokens']['access_token']}"}

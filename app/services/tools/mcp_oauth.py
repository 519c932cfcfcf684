"""Access tokens for MCP servers that want OAuth: asked for, sealed, and renewed by one at a time.

What a server has granted is one sealed value of the table of secrets, `oauth/{server_id}`, which no
tool can name. It is JSON: what `McpClient.authorize` returned, `pending` while a person is asked,
and `renewing_until` while somebody renews it.
"""

import secrets as comparison
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
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


class GrantState(StrEnum):
    """What is left of an authorization."""

    NONE = "none"
    VALID = "valid"
    RENEWABLE = "renewable"
    """Its access token has ended, and is renewed at the next use."""
    ENDED = "ended"


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

    async def state(self, workspace_id: UUID, server_id: UUID) -> GrantState:
        """Return what is left of a server's authorization; nothing is renewed."""
        grant = await self._read(workspace_id, server_id)
        if _is_valid(grant):
            return GrantState.VALID
        tokens: Grant | None = grant.get("tokens")
        if not tokens:
            return GrantState.NONE
        return GrantState.RENEWABLE if tokens.get("refresh_token") else GrantState.ENDED

    async def begin(
        self, workspace_id: UUID, server_id: UUID, settings: ServerSettings, redirect_uri: str
    ) -> tuple[str, datetime]:
        """Return the URL of the page where a person authorizes this server, and until when."""
        granted = await self._step(
            workspace_id, settings, "begin", "The authorization was not begun.", redirect_uri
        )
        ends_at = time.time() + _PENDING_SECONDS
        pending = {**granted.grant, "ends_at": ends_at}
        await self._change(workspace_id, server_id, lambda grant: {**grant, _PENDING: pending})
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
        begun: list[Grant] = []

        def take_pending(grant: Grant) -> Grant:
            pending: Grant | None = grant.get(_PENDING)
            if not pending or not _is_answered(pending, str(answer["state"])):
                message = "This answers no authorization that was begun within the last 10 minutes."
                raise McpUnauthorized(message)
            begun[:] = [pending]
            return _without(grant, _PENDING)

        await self._change(workspace_id, server_id, take_pending)
        granted = await self._step(
            workspace_id,
            settings,
            "finish",
            "The authorization was not finished.",
            grant=begun[0],
            code=answer["code"],
            issuer=answer["iss"],
        )
        await self._change(workspace_id, server_id, lambda _: dict(granted.grant))

    async def _valid_grant(
        self,
        workspace_id: UUID,
        server_id: UUID,
        settings: ServerSettings,
        refused: Mapping[str, str],
    ) -> Grant:
        with anyio.move_on_after(_STEP_SECONDS):
            while True:
                grant = await self._read(workspace_id, server_id)
                if _is_valid(grant) and _header_of(grant) != refused:
                    return grant
                if settings["oauth"]["grant"] != "client_credentials":
                    _require_renewable(grant)
                if await self._claim(workspace_id, server_id, grant):
                    return await self._renew(workspace_id, server_id, settings, grant)
                await anyio.sleep(_POLL_SECONDS)  # somebody else renews it
        raise McpUnauthorized("The access token of the MCP server was not renewed in time.")

    async def _claim(self, workspace_id: UUID, server_id: UUID, seen: Grant) -> bool:
        """Take it on to renew a grant, unless another has, or has done so meanwhile."""
        is_mine = False

        def claim(grant: Grant) -> Grant:
            nonlocal is_mine
            is_mine = grant == seen and grant.get(_LEASE, 0) < time.time()
            return {**grant, _LEASE: time.time() + _LEASE_SECONDS} if is_mine else grant

        await self._change(workspace_id, server_id, claim)
        return is_mine

    async def _renew(
        self, workspace_id: UUID, server_id: UUID, settings: ServerSettings, grant: Grant
    ) -> Grant:
        """Renew a grant that was claimed. Where that fails, what there is is kept."""
        renewed: Grant = {}

        def keep(now: Grant) -> Grant:
            is_same = _LEASE in now  # nobody has authorized anew meanwhile
            return _without({**now, **renewed}, _LEASE) if is_same else now

        try:
            renewed = await self._renewed(workspace_id, settings, grant)
        finally:
            with anyio.CancelScope(shield=True):
                await self._change(workspace_id, server_id, keep)
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
        authorization = McpAuthorization(target, client, step, redirect_uri=redirect_uri, **more)
        try:
            return await self._client.authorize(authorization, _STEP_SECONDS)
        except McpError as error:
            raise request_error(error, not_done) from None

    async def _read(self, workspace_id: UUID, server_id: UUID) -> Grant:
        async with self._database.reading() as db:
            stored = await db.get(StoredSecret, (workspace_id, f"{_PREFIX}{server_id}"))
            return self._opened(stored)

    def _opened(self, stored: StoredSecret | None) -> Grant:
        if stored is None:
            return {}
        return orjson.loads(
            self._keys.sealer().open(stored.sealed, stored.workspace_id, stored.name)
        )

    async def _change(
        self, workspace_id: UUID, server_id: UUID, change: Callable[[Grant], Grant]
    ) -> None:
        """Replace the stored grant, locked meanwhile, by what `change` makes of it."""
        name, sealer = f"{_PREFIX}{server_id}", self._keys.sealer()
        for is_last in (False, True):
            try:
                async with self._database.transaction() as db:
                    key = (workspace_id, name)
                    stored = await db.get(StoredSecret, key, with_for_update=True)
                    grant = orjson.dumps(change(self._opened(stored)))
                    if stored is None:
                        stored = StoredSecret(workspace_id=workspace_id, name=name, hosts=[])
                        db.add(stored)
                    stored.sealed = sealer.seal(grant, workspace_id, name)
                    stored.key_id, stored.updated_at = sealer.key_id, utc_now()
                    await db.flush()
            except IntegrityError:  # another made the row at this moment
                if is_last:
                    raise
            else:
                return


async def delete_grant(db: AsyncSession, workspace_id: UUID, server_id: UUID) -> None:
    """Forget what a server has granted, if anything."""
    stored = await db.get(StoredSecret, (workspace_id, f"{_PREFIX}{server_id}"))
    if stored is not None:
        await db.delete(stored)


def _without(grant: Grant, key: str) -> Grant:
    return {name: value for name, value in grant.items() if name != key}


def _is_answered(pending: Grant, state: str) -> bool:
    is_its_state = comparison.compare_digest(str(pending["state"]).encode(), state.encode())
    return is_its_state and pending["ends_at"] > time.time()


def _is_valid(grant: Grant) -> bool:
    ends_at = grant.get("expires_at")
    return bool(grant.get("tokens")) and (
        ends_at is None or ends_at > time.time() + _RENEW_BEFORE_SECONDS
    )


def _require_renewable(grant: Grant) -> None:
    tokens: Grant | None = grant.get("tokens")
    if not tokens or not tokens.get("refresh_token"):
        raise McpUnauthorized(_NOT_AUTHORIZED)


def _header_of(grant: Grant) -> dict[str, str]:
    return {"Authorization": f"Bearer {grant['tokens']['access_token']}"}

"""The door: who asks is known before anything of the request is read."""

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs
from uuid import UUID

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import AppEnv
from app.core.database import StorageUnavailable
from app.core.errors import AppError
from app.core.limits import Quota
from app.core.schema_gate import SchemaGate
from app.core.security import (
    ADMIN,
    AdminKey,
    Caller,
    CallerKind,
    is_local_request,
    unauthenticated,
)
from app.core.tenancy import only
from app.routers.problems import problem_response, with_quota
from app.routers.rules import PUBLIC_PATHS
from app.services.identity import (
    RECHECK_SECONDS,
    Callers,
    WorkspaceNotFound,
    parse,
)

if TYPE_CHECKING:
    from app.services.identity.supabase import SupabaseTokens

_POLICY_VIOLATION = 1008
_SESSION_TOKEN = b"st_"
_OURS = (b"ap_", _SESSION_TOKEN)
_AUDIO_PATH = re.compile(r"/turns/[^/]+/audio")
_JWT_DOTS = 2
_EVENTS = b"text/event-stream"


@dataclass(frozen=True, slots=True)
class Door:
    """Decides who comes in. `users` is set where a Supabase project vouches for its users."""

    app_env: AppEnv
    admin_key: AdminKey
    callers: Callers
    users: "SupabaseTokens | None"
    schema_gate: SchemaGate

    async def caller(self, scope: Scope) -> Caller:
        """Return who asks, and in which workspace.

        Raises `Unauthenticated`, `WorkspaceNotFound`, and what keeps it from finding out:
        `DatabaseNotMigrated`, `StorageUnavailable`, `IdentityUnavailable`.
        """
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        token = token.strip() if scheme.lower() == b"bearer" else _token_of_url(scope)
        peer = scope["client"][0] if scope.get("client") else None
        if token and self.admin_key.matches(token):
            caller = ADMIN
        elif token.startswith(_OURS) or token.count(b".") == _JWT_DOTS:
            # Also on its own machine: whoever sends a key wants to be what the key is.
            caller = await self._holder(token)
        elif self.app_env is AppEnv.DEVELOPMENT and is_local_request(peer, headers):
            caller = ADMIN
        else:
            raise unauthenticated()
        await self.schema_gate.require()
        return await self._in_workspace(caller, headers.get(b"x-workspace-id"))

    async def _holder(self, token: bytes) -> Caller:
        if not token.startswith(_OURS):
            if self.users is None:
                raise unauthenticated()
            return await self.users.caller(token)
        presented = parse(token)
        if presented is None:
            raise unauthenticated()
        await self.schema_gate.require()
        return await self.callers.of(presented)

    async def _in_workspace(self, caller: Caller, named: bytes | None) -> Caller:
        """Let the admin act in the workspace that the request names, and others in their own."""
        if named is None:
            return caller
        try:
            workspace_id = UUID(named.decode("latin-1"))
        except ValueError:
            raise WorkspaceNotFound("There is no such workspace.") from None
        if workspace_id == caller.workspace_id:
            return caller
        if caller.kind is not CallerKind.ADMIN:
            raise WorkspaceNotFound("There is no such workspace.")
        await self.callers.require_workspace(workspace_id)
        return replace(caller, workspace_id=workspace_id)


class Access:
    """Lets in who may, and tells endpoints who it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "lifespan" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        door: Door = state["door"]
        try:
            state["caller"] = await door.caller(scope)
            quota: Quota | None = await state["request_limiter"].admit(state["caller"])
        except AppError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
                return
            await problem_response(error, state["request_id"])(scope, receive, send)
            return
        sends = _while_allowed(send, door.callers, state["caller"], quota)
        with only(state["caller"].workspace_id):
            await self._app(scope, receive, sends)


def _token_of_url(scope: Scope) -> bytes:
    """Return the session token of `GET /turns/{id}/audio?token=`, or nothing.

    A browser's `<audio src>` sends no header. URLs are kept in logs, so nothing that lives longer
    than minutes is taken from one.
    """
    if scope.get("method") != "GET" or not _AUDIO_PATH.fullmatch(scope["path"]):
        return b""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    given = query.get("token", [""])[0].encode()
    return given if given.startswith(_SESSION_TOKEN) else b""


def _while_allowed(send: Send, callers: Callers, caller: Caller, quota: Quota | None) -> Send:
    """Tell the caller how they stand, and cut a long answer once its key is revoked or expires.

    Event streams look for themselves: they say so, and are silent for long.
    """
    look_again_at = time.monotonic() + RECHECK_SECONDS

    async def send_if_allowed(message: Message) -> None:
        nonlocal look_again_at
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            for _, value in headers:
                if value.startswith(_EVENTS):
                    look_again_at = float("inf")
            if quota:
                message["headers"] = with_quota(headers, quota)
        elif message.get("more_body") and time.monotonic() > look_again_at:
            look_again_at = time.monotonic() + RECHECK_SECONDS
            with suppress(StorageUnavailable):
                await callers.require_still(caller)
        await send(message)

    return send_if_allowed

"""Authentication: identifies the caller before anything of the request's body is read."""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING
from urllib.parse import parse_qs
from uuid import UUID

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import AppEnv
from app.core.database import StorageUnavailable
from app.core.database.revision import RevisionCheck
from app.core.database.workspace_scope import workspace_scope
from app.core.errors import AppError, ErrorKind
from app.core.limits import Limits, Quota
from app.core.security import (
    ADMIN,
    DEFAULT_WORKSPACE_ID,
    AdminKey,
    Caller,
    CallerKind,
    Permission,
    Unauthenticated,
    unauthenticated,
)
from app.http.console_cookie import console_secret, is_of_own_page
from app.http.local_requests import is_local_request
from app.http.openai_headers import rate_headers
from app.http.permissions import PUBLIC_PATHS
from app.http.problems import add_quota_headers, problem_response
from app.http.upgrade_refusal import refuse_upgrade
from app.services.identity import (
    RECHECK_SECONDS,
    CallerLookup,
    WorkspaceNotFound,
    parse,
)

if TYPE_CHECKING:
    from app.services.identity.supabase import SupabaseTokens

_SESSION_TOKEN = b"st_"
_OWN_PREFIXES = (b"ap_", b"ek_", _SESSION_TOKEN)
_WEBSOCKET = "WEBSOCKET"
_TOKEN_PROTOCOL = "openai-insecure-api-key."  # noqa: S105  # its name
_AUDIO_PATH = re.compile(r"/turns/[^/]+/audio")
_JWT_DOTS = 2
_EVENTS = b"text/event-stream"
_UNIQUE_HEADERS = frozenset(
    (
        b"host", b"authorization", b"idempotency-key", b"content-type", b"content-length",
        b"x-workspace-id", b"last-event-id", b"range", b"origin", b"api-key", b"x-api-key",
    )
)  # fmt: skip


class HeaderRepeated(AppError):
    """A header that must be unique came more than once."""

    kind = ErrorKind.MALFORMED
    code = "header-repeated"


_METRICS_PATH = "/metrics"
_METRICS_READER = Caller(
    DEFAULT_WORKSPACE_ID,
    CallerKind.KEY,
    frozenset((Permission.METRICS_READ,)),
    key_id="METRICS_TOKEN",
    limits=Limits(0, 0, 0, 0, Decimal(0)),
)
"""Without limits: it costs no transaction, and is known to the operator alone."""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Identifies callers; `users` verifies Supabase access tokens, if Supabase is configured."""

    app_env: AppEnv
    admin_key: AdminKey
    callers: CallerLookup
    users: "SupabaseTokens | None"
    schema_gate: RevisionCheck
    metrics_token: AdminKey | None = None
    """Reads `/metrics`, and nothing else; also while the database is away."""

    async def caller(self, scope: Scope) -> Caller:
        """Return the caller of a request, with the workspace that it acts in.

        Raises `Unauthenticated`, `HeaderRepeated`, `WorkspaceNotFound`, and what keeps it from
        finding out: `DatabaseNotMigrated`, `StorageUnavailable`, `IdentityUnavailable`.
        """
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        if len(headers) != len(scope["headers"]):
            _refuse_repeated(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        token = token.strip() if scheme.lower() == b"bearer" else _token_elsewhere(scope, headers)
        signed_in = await self._caller_of_cookie(scope, headers) if not token else None
        if self._reads_metrics(scope, token):
            return _METRICS_READER
        if token and self.admin_key.matches(token):
            caller = ADMIN
        elif token.startswith(_OWN_PREFIXES) or token.count(b".") == _JWT_DOTS:
            # On loopback as well: a request with a key has only the rights of that key.
            caller = await self._caller_of_credential(token)
        elif signed_in:
            caller = signed_in
        elif self.app_env is AppEnv.DEVELOPMENT and is_local_request(scope, headers):
            caller = ADMIN
        else:
            raise unauthenticated(
                "no known kind of key or token" if token else "no key, and not a local request"
            )
        await self.schema_gate.require()
        return await self._in_workspace(caller, headers.get(b"x-workspace-id"))

    def _reads_metrics(self, scope: Scope, token: bytes) -> bool:
        if not token or self.metrics_token is None or scope["path"] != _METRICS_PATH:
            return False
        return self.metrics_token.matches(token)

    async def _caller_of_credential(self, token: bytes) -> Caller:
        if not token.startswith(_OWN_PREFIXES):
            if self.users is None:
                raise unauthenticated("a JWT, and SUPABASE_URL is not set")
            return await self.users.caller(token)
        presented = parse(token)
        if presented is None:
            raise unauthenticated("a mistyped key or token")
        await self.schema_gate.require()
        return await self.callers.of(presented)

    async def _caller_of_cookie(
        self, scope: Scope, headers: Mapping[bytes, bytes]
    ) -> Caller | None:
        """Return the caller of a console session; `None` where there is none, or not any more."""
        cookies = headers.get(b"cookie")
        secret = console_secret(cookies) if cookies else None
        presented = parse(secret) if secret else None
        if presented is None or not is_of_own_page(scope.get("method", _WEBSOCKET), headers):
            return None
        await self.schema_gate.require()
        try:
            return await self.callers.of(presented)
        except Unauthenticated:
            return None

    def credential_hash(self, caller: Caller) -> bytes:
        """Return the SHA-256 of the key that a caller has presented, or of the admin key."""
        return caller.credential.digest if caller.credential else self.admin_key.digest

    async def _in_workspace(self, caller: Caller, named: bytes | None) -> Caller:
        """Apply `X-Workspace-Id`: the admin may name any workspace, others only their own."""
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


class AuthenticationMiddleware:
    """Authenticates each request, applies its rate limit, and sets `state["caller"]`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; lifespan events and public paths are passed on unchecked."""
        if scope["type"] == "lifespan" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        authenticator: Authenticator = state["authenticator"]
        try:
            state["caller"] = await authenticator.caller(scope)
            quota: Quota | None = await state["request_limiter"].admit(state["caller"])
        except AppError as error:
            if scope["type"] == "websocket":
                await refuse_upgrade(error, scope, send)
                return
            if error.quota and _is_openai(scope):
                send = _send_with(send, rate_headers((error.quota,)))
            await problem_response(error, state["request_id"])(scope, receive, send)
            return
        sends = _send_while_authorized(send, authenticator.callers, state["caller"], quota)
        with workspace_scope(state["caller"].workspace_id):
            if _is_openai(scope) and scope["type"] == "http":
                tokens = await state["token_quotas"].of(state["caller"])
                sends = _send_with(sends, rate_headers((quota, tokens)))
            await self._app(scope, receive, sends)


def _is_openai(scope: Scope) -> bool:
    """Tell whether a path is one of OpenAI's API."""
    return scope["path"].startswith("/v1/")


def _send_with(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    """Return a `send` that adds headers to the response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *headers]
        await send(message)

    return send_with_headers


def _refuse_repeated(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise `HeaderRepeated` where a header comes twice that must be unique.

    Which of them counts would depend on who reads it, as on a proxy in front.
    """
    names = [name for name, _ in headers if name in _UNIQUE_HEADERS]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1).decode()
        raise HeaderRepeated(f"Send the header `{repeated}` only once.")


def _token_elsewhere(scope: Scope, headers: Mapping[bytes, bytes]) -> bytes:
    """Return the key of a header that OpenAI's clients use instead, or the token of the query."""
    if _is_openai(scope):
        token = headers.get(b"api-key") or headers.get(b"x-api-key") or b""
        return token or _token_in_subprotocols(scope)
    return _token_in_query(scope)


def _token_in_subprotocols(scope: Scope) -> bytes:
    """Return the token that a browser offers as a subprotocol: a WebSocket has no headers there."""
    for name in scope.get("subprotocols") or ():
        if name.startswith(_TOKEN_PROTOCOL):
            return name.removeprefix(_TOKEN_PROTOCOL).encode("latin-1", "replace")
    return b""


def _token_in_query(scope: Scope) -> bytes:
    """Return the session token of `GET /turns/{id}/audio?token=`, or an empty value.

    A browser's `<audio src>` cannot send a header. URLs are stored in logs, so only tokens that
    expire within minutes are accepted from them.
    """
    if scope.get("method") != "GET" or not _AUDIO_PATH.fullmatch(scope["path"]):
        return b""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    token = query.get("token", [""])[0].encode()
    return token if token.startswith(_SESSION_TOKEN) else b""


def _send_while_authorized(
    send: Send, callers: CallerLookup, caller: Caller, quota: Quota | None
) -> Send:
    """Return a `send` that adds quota headers and aborts long responses after a revocation.

    It checks the key or token again every `RECHECK_SECONDS`. Event streams do that themselves:
    they end with an error event, and may send nothing for long.
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
                message["headers"] = add_quota_headers(headers, quota)
        elif message.get("more_body") and time.monotonic() > look_again_at:
            look_again_at = time.monotonic() + RECHECK_SECONDS
            with suppress(StorageUnavailable):
                await callers.require_valid(caller)
        await send(message)

    return send_if_allowed

"""What every request passes first: an id, the door, and a net for what nobody caught.

Plain ASGI, outside of everything, so that nothing is read before the caller is known.
"""

import logging
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import AppEnv
from app.core.errors import AppError, StartRefused
from app.core.limits import Quota
from app.core.security import ADMIN, AdminKey, Caller, Unauthenticated, is_local_request
from app.routers.problems import add_quota, problem_response
from app.services.turns.errors import InternalError

logger = logging.getLogger(__name__)

_POLICY_VIOLATION = 1008
_PUBLIC_PATHS = frozenset(("/health", "/health/live", "/health/ready"))


@dataclass(frozen=True, slots=True)
class Door:
    """Decides who comes in."""

    app_env: AppEnv
    admin_key: AdminKey

    def caller(self, scope: Scope) -> Caller:
        """Return who asks. Raises `Unauthenticated`."""
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and self.admin_key.matches(token.strip()):
            return ADMIN
        peer = scope["client"][0] if scope.get("client") else None
        if self.app_env is AppEnv.DEVELOPMENT and is_local_request(peer, headers):
            return ADMIN
        raise Unauthenticated(
            "Send `Authorization: Bearer <key>`. Without a key, only requests from the server's "
            "own machine to a loopback name are served, and only in development."
        )


class Access:
    """Gives each request an id, lets in who may, and turns a bug into a 500 without detail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _without_traceback(send))
            return
        request_id = secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started = False
        quota: Quota | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"request-id", request_id.encode()),
                ]
                if quota:
                    add_quota(message["headers"], quota)
            await send(message)

        try:
            if scope["path"] not in _PUBLIC_PATHS:
                door: Door = state["door"]
                state["caller"] = door.caller(scope)
                await state["schema_gate"].require()
                quota = await state["request_limiter"].admit(state["caller"])
            await self._app(scope, receive, send_with_id)
        except AppError as error:  # the door's; those of endpoints are handled inside
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
                return
            await problem_response(error, request_id)(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if started or scope["type"] != "http":
                raise  # the server cuts the connection, so that nobody takes it for the end
            bug = InternalError("The server failed; its log says why, under the request's id.")
            await problem_response(bug, request_id)(scope, receive, send_with_id)


def _without_traceback(send: Send) -> Send:
    """Let a server that refuses to start say so in a sentence, not with a traceback."""

    async def send_sentence(message: Message) -> None:
        refusal = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(refusal, StartRefused):
            message["message"] = str(refusal)
        await send(message)

    return send_sentence

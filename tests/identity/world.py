"""Two workspaces with their keys, two end users, and every kind of caller there is."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
from sqlalchemy import select, update

from app.core.database import Database
from app.models import ApiKey, CallStatus, SessionFile, StoredFile, ToolCall, Turn
from app.services.identity.credentials import CredentialKind, new_credential
from tests.identity.issuer import Issuer
from tests.support.planted_secrets import ADMIN_KEY

NOUNS = ("agents", "sessions", "turns", "usage", "keys", "tools", "files")
SCOPES = [f"{what}:{how}" for what in NOUNS for how in ("read", "write")] + [
    "metrics:read", "approvals:write",
]  # fmt: skip
READ_SCOPES = [scope for scope in SCOPES if scope.endswith(":read")]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ADMIN = bearer(ADMIN_KEY)


@dataclass(frozen=True)
class Things:
    """What a workspace has, and one session of it."""

    agent_id: str
    session_id: str
    turn_id: str
    key_id: str
    secret_name: str
    tool_id: str
    call_id: str
    file_id: str
    server_id: str
    message_id: str
    """Of the turn's answer."""


@dataclass(frozen=True)
class World:
    client: httpx2.AsyncClient
    issuer: Issuer
    callers: dict[str, dict[str, str]]
    """Headers by kind of caller."""
    other_workspace_id: str
    database: Database

    async def things(
        self, headers: dict[str, str] = ADMIN, *, user_id: str | None = "user-1"
    ) -> Things:
        """Make an agent, a session of `user_id`, a turn in it, and a key."""
        agent = await self._make("/agents", {"name": "Ada"}, headers)
        body = {"agent_id": agent["id"], "user_id": user_id}
        session = await self._make("/sessions", body, headers)
        said = {"session_id": session["id"], "content": "Hi"}
        reply = await self._make("/messages/text", said, headers)
        key = await self._make("/keys", {"name": "k", "scopes": ["usage:read"]}, headers)
        name = f"K_{key['id']}"
        hosts = ["api.example.com"]
        secret = {"name": name, "value": "12345678", "hosts": hosts}
        await self._make("/secrets", secret, headers)
        tool = {"name": name, "description": "T.", "kind": "client"}
        tool_id = (await self._make("/tools", tool, headers))["id"]
        turn_id = reply["turn_id"]
        call_id = await self._call(session["id"], turn_id)
        file_id = await self._file(session["id"], turn_id)
        server = {"name": f"m_{key['id']}", "url": "https://mcp.example.com/mcp"}
        server_id = (await self._make("/mcp-servers", server, headers))["id"]
        return Things(
            agent["id"],
            session["id"],
            turn_id,
            key["id"],
            name,
            tool_id,
            call_id,
            file_id,
            server_id,
            reply["id"],
        )

    async def _file(self, session_id: str, turn_id: str) -> str:
        """Store an image that a message of the session uses."""
        async with self.database.transaction() as db:
            turn = await db.scalar(select(Turn).where(Turn.id == UUID(turn_id)))
            assert turn is not None
            file = StoredFile(
                workspace_id=turn.workspace_id,
                name="a.png",
                media_type="image/png",
                size_bytes=1,
                sha256="0" * 64,
                width=1,
                height=1,
                is_stored=True,
                in_store=False,
                data=b"1",
            )
            db.add(file)
            await db.flush()
            link = {"workspace_id": turn.workspace_id, "session_id": UUID(session_id)}
            db.add(SessionFile(**link, file_id=file.id))
            await db.flush()
            return str(file.id)

    async def _call(self, session_id: str, turn_id: str) -> str:
        """Store a tool call of a turn, which has ended."""
        async with self.database.transaction() as db:
            turn = await db.scalar(select(Turn).where(Turn.id == UUID(turn_id)))
            assert turn is not None
            call = ToolCall(
                workspace_id=turn.workspace_id,
                turn_id=turn.id,
                session_id=UUID(session_id),
                step=1,
                index=0,
                model_call_id="c",
                name="t",
                arguments="{}",
                status=CallStatus.FAILED,
            )
            db.add(call)
            await db.flush()
            return str(call.id)

    async def token(self, session_id: str, headers: dict[str, str] = ADMIN) -> dict[str, str]:
        made = await self._make(f"/sessions/{session_id}/tokens", {}, headers)
        return bearer(made["token"])

    async def key(
        self, *scopes: str, headers: dict[str, str] = ADMIN, **body: Any
    ) -> dict[str, Any]:
        return await self._make("/keys", {"name": "k", "scopes": scopes or SCOPES} | body, headers)

    async def _make(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:  # noqa: ANN401  # JSON
        response = await self.client.post(path, json=body, headers=headers)
        assert response.status_code in {200, 201}, response.text
        return response.json()


async def build_world(client: httpx2.AsyncClient, database: Database, issuer: Issuer) -> World:
    made = await client.post("/workspaces", json={"name": "other"}, headers=ADMIN)
    other_id = made.json()["id"]
    world = World(client, issuer, {}, other_id, database)
    in_other = ADMIN | {"X-Workspace-Id": other_id}
    full, read_only = await world.key(), await world.key(*READ_SCOPES)
    wrong_scope, revoked, expired = [await world.key("usage:write") for _ in range(3)]
    of_other = await world.key(headers=in_other)
    await client.delete(f"/keys/{revoked['id']}", headers=ADMIN)
    async with database.transaction() as db:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await db.execute(update(ApiKey).where(ApiKey.id == expired["id"]).values(expires_at=past))
    elsewhere = await world.things()
    text: str = full["key"]
    broken = text[:-1] + ("A" if text[-1] != "A" else "B")
    unknown = new_credential(CredentialKind.KEY).text
    wrong_secret = new_credential(CredentialKind.KEY, full["id"]).text
    now = int(time.time())
    world.callers.update(
        {
            "none": {},
            "malformed": bearer("ap_12345678_short"),
            "wrong checksum": bearer(broken),
            "unknown": bearer(unknown),
            "wrong secret": bearer(wrong_secret),
            "revoked": bearer(revoked["key"]),
            "expired": bearer(expired["key"]),
            "jwt expired": bearer(issuer.token(iat=now - 900, exp=now - 300)),
            "jwt wrong audience": bearer(issuer.token(aud="other")),
            "jwt alg none": bearer(issuer.token(algorithm="none")),
            "jwt signed with the public key": bearer(issuer.token_signed_with_the_public_key()),
            "read-only": bearer(read_only["key"]),
            "wrong scope": bearer(wrong_scope["key"]),
            "other workspace": bearer(of_other["key"]),
            "other user": bearer(issuer.token("user-2")),
            "token of another session": await world.token(elsewhere.session_id),
            "key": bearer(full["key"]),
            "user": bearer(issuer.token("user-1")),
            "admin": ADMIN,
        }
    )
    return world

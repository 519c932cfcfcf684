"""Every endpoint against every kind of caller. A new endpoint without a row here fails."""

import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from starlette.routing import Mount

from app.core.config import AppEnv
from app.core.security import Permission
from app.http.console_files import PREFIX as CONSOLE_PREFIX
from app.http.endpoint_route import EndpointRoute
from app.http.permissions import ENDPOINT_POLICIES, OPEN_TO_EVERY_CALLER, PUBLIC_PATHS
from app.main import create_app
from tests.files.made import png
from tests.identity.world import Things, World
from tests.support.application import IsolatedSettings

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]

NOBODY = [
    "none", "malformed", "wrong checksum", "unknown", "wrong secret", "revoked", "expired",
    "jwt expired", "jwt wrong audience", "jwt alg none", "jwt signed with the public key",
]  # fmt: skip
SOMEBODY = [
    "read-only", "wrong scope", "other workspace", "other user", "token of another session",
    "key", "user", "own token", "admin",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One endpoint: what it needs, who else may use it, and a request that works."""

    scope: str
    users: bool = False
    tokens: bool = False
    json: dict[str, Any] | None = None
    form: dict[str, str] | None = None
    status: int = 200
    query: str = ""
    hides: bool = False
    """Whether it answers the same where there is nothing, and where that is not the caller's."""

    @property
    def names_something(self) -> bool:
        """True where a request names a thing of a workspace."""
        values = ((self.json or {}) | (self.form or {})).values()
        return any(isinstance(value, str) and "{" in value for value in values)


ROWS: dict[str, Row] = {
    "POST /agents": Row("agents:write", json={"name": "Ada"}, status=201),
    "GET /agents": Row("agents:read", users=True),
    "GET /agents/{agent_id}": Row("agents:read", users=True),
    "PUT /agents/{agent_id}": Row("agents:write", json={"name": "Eve"}),
    "PATCH /agents/{agent_id}": Row("agents:write", json={"name": "Bob"}),
    "POST /agents/{agent_id}/unarchive": Row("agents:write"),
    "DELETE /agents/{agent_id}": Row("agents:write", status=204),
    "GET /agents/{agent_id}/versions": Row("agents:read"),
    "POST /agents/{agent_id}/versions/{version}/restore": Row("agents:write"),
    "POST /sessions": Row(
        "sessions:write", users=True, json={"agent_id": "{agent_id}"}, status=201
    ),
    "GET /sessions": Row("sessions:read", users=True),
    "GET /sessions/export": Row("sessions:read", users=True),
    "GET /sessions/{session_id}": Row("sessions:read", users=True, tokens=True),
    "PATCH /sessions/{session_id}": Row("sessions:write", users=True, json={"title": "x"}),
    "DELETE /sessions/{session_id}": Row("sessions:write", users=True, status=204),
    "GET /sessions/{session_id}/messages": Row("sessions:read", users=True, tokens=True),
    "GET /sessions/{session_id}/events": Row(
        "sessions:read", users=True, tokens=True, query="?seconds=0"
    ),
    "POST /sessions/{session_id}/fork": Row("sessions:write", users=True, json={}, status=201),
    "GET /sessions/{session_id}/export": Row("sessions:read", users=True),
    "POST /sessions/{session_id}/tokens": Row("sessions:write", json={}, status=201),
    "POST /messages/text": Row(
        "turns:write", users=True, tokens=True,
        json={"session_id": "{session_id}", "content": "Hi"},
    ),
    "POST /messages/voice": Row(
        "turns:write", users=True, tokens=True, form={"session_id": "{session_id}"}
    ),
    "GET /turns": Row("turns:read", users=True, tokens=True),
    "GET /turns/{turn_id}": Row("turns:read", users=True, tokens=True),
    "GET /turns/{turn_id}/events": Row("turns:read", users=True, tokens=True),
    "GET /turns/{turn_id}/audio": Row(  # of a text turn, which has none
        "turns:read", users=True, tokens=True, status=404
    ),
    "GET /turns/{turn_id}/recording": Row(  # of a text turn, which has none
        "turns:read", users=True, tokens=True, status=404
    ),
    "POST /turns/{turn_id}/retry": Row(  # of one that has not failed
        "turns:write", users=True, tokens=True, status=409
    ),
    "POST /turns/{turn_id}/cancel": Row("turns:write", users=True, tokens=True),
    "GET /tool-calls": Row("turns:read", users=True, tokens=True),
    "GET /tool-calls/{call_id}": Row("turns:read", users=True, tokens=True),
    "POST /tool-calls/{call_id}/resolution": Row(  # of a call that waits for nothing
        "turns:write", users=True, tokens=True, json={"output": 1}, status=409
    ),
    "POST /keys": Row("keys:write", json={"name": "k", "scopes": ["keys:read"]}, status=201),
    "GET /keys": Row("keys:read"),
    "GET /keys/{key_id}": Row("keys:read"),
    "PATCH /keys/{key_id}": Row("keys:write", json={"name": "renamed"}),
    "DELETE /keys/{key_id}": Row("keys:write", status=204),
    "POST /keys/{key_id}/rotate": Row("keys:write", json={}),
    "POST /tools": Row(
        "tools:write", json={"name": "t", "description": "T.", "kind": "client"}, status=201
    ),
    "POST /tools/import": Row(
        "tools:write", json={"openapi": {"openapi": "3.1.0"}, "base_url": "https://a.example"}
    ),
    "GET /tools": Row("tools:read"),
    "GET /tools/{tool_id}": Row("tools:read"),
    "PUT /tools/{tool_id}": Row("tools:write", json={"description": "New."}),
    "PATCH /tools/{tool_id}": Row("tools:write", json={"trusted": False}),
    "DELETE /tools/{tool_id}": Row("tools:write", status=204),
    "GET /tools/{tool_id}/versions": Row("tools:read"),
    "POST /tools/{tool_id}/test": Row("tools:write", json={}, status=422),  # of a client's tool
    "POST /mcp-servers": Row(
        "tools:write", json={"name": "m", "url": "https://mcp.example.com/mcp"}, status=201
    ),
    "GET /mcp-servers": Row("tools:read"),
    "GET /mcp-servers/{server_id}": Row("tools:read"),
    "PUT /mcp-servers/{server_id}": Row("tools:write", json={"timeout_seconds": 5}),
    "PATCH /mcp-servers/{server_id}": Row("tools:write", json={"auto_accept": True}),
    "DELETE /mcp-servers/{server_id}": Row("tools:write", status=204),
    "POST /mcp-servers/{server_id}/refresh": Row("tools:write"),
    "POST /mcp-servers/{server_id}/authorization": Row(  # of a server without OAuth
        "tools:write", json={"redirect_uri": "https://console.example.com/back"}, status=422
    ),
    "POST /mcp-servers/{server_id}/authorization/code": Row(
        "tools:write", json={"code": "c", "state": "s"}, status=422
    ),
    "POST /mcp-servers/{server_id}/tools/{name}/accept": Row(  # of no tool that it lists
        "tools:write", json={}, status=404
    ),
    "POST /secrets": Row(
        "tools:write",
        json={"name": "K", "value": "12345678", "hosts": ["api.example.com"]},
        status=201,
    ),
    "GET /secrets": Row("tools:read"),
    "DELETE /secrets/{name}": Row("tools:write", status=204),
    "POST /files": Row("files:write", users=True, tokens=True, form={}, status=201),
    "GET /files": Row("files:read", users=True, tokens=True),
    "GET /files/{file_id}": Row("files:read", users=True, tokens=True),
    "GET /files/{file_id}/content": Row("files:read", users=True, tokens=True),
    "DELETE /files/{file_id}": Row(  # of a file that a message uses
        "files:write", users=True, tokens=True, status=409
    ),
    "GET /usage": Row("usage:read", users=True),
    "GET /usage/budgets": Row("usage:read", users=True),
    "GET /me": Row("any", users=True, tokens=True),
    "GET /system": Row("usage:read"),
    "POST /console/session": Row("any", status=204),
    "DELETE /console/session": Row("any", status=204),
    "DELETE /users/{user_id}": Row("sessions:write"),
    "GET /audit": Row("keys:read"),
    "GET /metrics": Row("metrics:read"),
    "GET /v1/models": Row("agents:read", users=True),
    "GET /v1/models/{model}": Row("agents:read", users=True),
    "POST /v1/chat/completions": Row(
        "turns:write", users=True,
        json={"model": "{agent_id}", "messages": [{"role": "user", "content": "Hi"}]},
    ),
    "POST /v1/responses": Row(
        "turns:write", users=True,
        json={"model": "{agent_id}", "input": "Hi", "store": False},
    ),
    "POST /api/chat": Row(
        "turns:write", users=True, tokens=True,
        json={
            "id": "{session_id}",
            "agent": "{agent_id}",
            "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}],
        },
    ),
    "GET /api/chat/{chat_id}/stream": Row(
        "turns:read", users=True, tokens=True, status=204, hides=True
    ),
    "DELETE /api/chat/{chat_id}/stream": Row(
        "turns:write", users=True, tokens=True, status=204, hides=True
    ),
    "POST /agui/{agent}": Row(
        "turns:write", users=True, tokens=True,
        json={
            "threadId": "{session_id}",
            "runId": "{key_id}",
            "messages": [{"id": "m", "role": "user", "content": "Hi"}],
        },
    ),
    "GET /v1/responses/{response_id}": Row("turns:read", users=True),
    "DELETE /v1/responses/{response_id}": Row("turns:write", users=True),
    "POST /v1/responses/{response_id}/cancel": Row("turns:write", users=True),
    "GET /v1/responses/{response_id}/input_items": Row("turns:read", users=True),
    "POST /v1/conversations": Row("sessions:write", users=True, json={}),
    "GET /v1/conversations/{conversation_id}": Row("sessions:read", users=True),
    "POST /v1/conversations/{conversation_id}": Row(
        "sessions:write", users=True, json={"metadata": {}}
    ),
    "DELETE /v1/conversations/{conversation_id}": Row("sessions:write", users=True),
    "GET /v1/conversations/{conversation_id}/items": Row("sessions:read", users=True),
    "POST /v1/conversations/{conversation_id}/items": Row(
        "sessions:write", users=True, json={"items": [{"role": "user", "content": "Hi"}]}
    ),
    "GET /v1/conversations/{conversation_id}/items/{item_id}": Row("sessions:read", users=True),
    "DELETE /v1/conversations/{conversation_id}/items/{item_id}": Row(
        "sessions:write", users=True
    ),
    "POST /v1/audio/transcriptions": Row(
        "turns:write", users=True, form={"model": "whisper-1"}
    ),
    "POST /v1/audio/speech": Row(
        "turns:write", users=True, json={"model": "tts-1", "input": "Hi"}
    ),
    "POST /v1/realtime/client_secrets": Row("turns:write", json={}),
    "POST /workspaces": Row("admin", json={"name": "w"}, status=201),
    "GET /workspaces": Row("admin"),
}  # fmt: skip


def all_routes(routes: list[Any]) -> list[Any]:
    """Return every route of an application, also those of its routers."""
    found: list[Any] = []
    for route in routes:
        router = getattr(route, "original_router", None)
        found += all_routes(router.routes) if router else [route]
    return found


def endpoints() -> dict[str, Any]:
    app = create_app(IsolatedSettings(app_env=AppEnv.DEVELOPMENT))
    return {
        f"{method} {route.path}": route
        for route in all_routes(app.routes)
        for method in getattr(route, "methods", None) or {"MOUNT"}
        if method != "HEAD"
    }


def test_every_endpoint_has_a_rule_and_a_row() -> None:
    outside = PUBLIC_PATHS | OPEN_TO_EVERY_CALLER | {f"{CONSOLE_PREFIX}{{name:path}}"}
    ruled = {name: route for name, route in endpoints().items() if route.path not in outside}

    assert (
        sorted(ruled)
        == sorted(f"{method} {path}" for method, path in ENDPOINT_POLICIES)
        == sorted(ROWS)
    )
    for name, route in ruled.items():
        assert isinstance(route, EndpointRoute), (
            f"{name} must be an EndpointRoute, which checks permissions"
        )
    for route in endpoints().values():
        assert route.path in outside or not isinstance(route, Mount)


def allowed(row: Row, kind: str) -> bool:
    """Tell whether a caller of this kind may use the endpoint at all."""
    match kind:
        case "admin":
            return True
        case "read-only":
            return row.scope == "any" or row.scope.endswith(":read")
        case "wrong scope":
            return row.scope == "any"
        case "other user" | "user":
            return row.users
        case "token of another session" | "own token":
            return row.tokens
        case _:
            return row.scope != "admin"


async def ask(
    world: World, name: str, headers: dict[str, str], things: Things, speech: bytes
) -> httpx2.Response:
    row = ROWS[name]
    method, _, path = name.partition(" ")
    known = {**vars(things), "version": "1", "user_id": "user-1", "name": things.secret_name}
    known |= {"model": things.agent_id, "agent": things.agent_id, "chat_id": things.session_id}
    known |= openai_ids(things.session_id, things.turn_id, things.message_id)

    def fill(body: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.format(**known) if isinstance(value, str) else value
            for key, value in body.items()
        }

    content: dict[str, Any] = {}
    if row.json is not None:
        content["json"] = fill(row.json)
    if row.form is not None:
        uploads = {"/files": ("x.png", png()), "/v1/audio/transcriptions": ("x.wav", speech)}
        upload = {"file": uploads[path]} if path in uploads else {"audio": ("x.wav", speech)}
        content = {"data": fill(row.form), "files": upload}
    return await world.client.request(
        method, path.format(**known) + row.query, headers=headers, **content
    )


def openai_ids(session_id: str, turn_id: str, message_id: str) -> dict[str, str]:
    """Return the ids of a session, of a turn and of its answer as OpenAI's API has them."""
    return {
        "conversation_id": f"conv_{UUID(session_id).hex}",
        "response_id": f"resp_{UUID(turn_id).hex}",
        "item_id": f"msg_{UUID(message_id).hex}",
    }


def is_openai(name: str) -> bool:
    """Tell whether an endpoint's errors have the shape of OpenAI's API."""
    return " /v1/" in name


def is_plain_text(name: str) -> bool:
    """Tell whether an endpoint's errors are plain text."""
    return " /api/chat" in name


def code_of(name: str, response: httpx2.Response) -> str:
    """Return the code of an error."""
    if is_plain_text(name):
        return response.headers["x-error-code"]
    problem = response.json()
    return (problem["error"] if is_openai(name) else problem)["code"]


def without_id(response: httpx2.Response) -> bytes:
    return response.content.replace(response.headers["request-id"].encode(), b"")


@pytest.mark.parametrize("kind", NOBODY)
async def test_nobody_comes_in(world: World, kind: str, speech: bytes) -> None:
    things = await world.things()
    refusals: set[bytes] = set()
    openai_refusals: set[bytes] = set()
    plain_refusals: set[bytes] = set()
    for name in ROWS:
        response = await ask(world, name, world.callers[kind], things, speech)
        assert response.status_code == HTTPStatus.UNAUTHORIZED, name
        if is_plain_text(name):
            plain_refusals.add(without_id(response))
        else:
            (openai_refusals if is_openai(name) else refusals).add(without_id(response))
    for path in OPEN_TO_EVERY_CALLER:
        response = await world.client.get(path, headers=world.callers[kind])
        assert response.status_code == HTTPStatus.UNAUTHORIZED, path
        refusals.add(without_id(response))
    counts = [len(each) for each in (refusals, openai_refusals, plain_refusals)]
    assert counts == [1, 1, 1], "it must not tell what was wrong"
    for path in PUBLIC_PATHS:
        response = await world.client.get(path, headers=world.callers[kind])
        assert response.status_code == HTTPStatus.OK, path


@pytest.mark.parametrize("kind", SOMEBODY)
async def test_somebody_gets_what_is_theirs_and_no_more(
    world: World, kind: str, speech: bytes
) -> None:
    is_stranger = kind in {"other workspace", "other user", "token of another session"}
    things = await world.things()
    for name, row in ROWS.items():
        headers = (
            await world.token(things.session_id) if kind == "own token" else world.callers[kind]
        )
        response = await ask(world, name, headers, things, speech)
        shared = ("agent", "model")
        reads_shared = kind == "other user" and any(each in name + str(row.json) for each in shared)
        if not allowed(row, kind):
            assert response.status_code == HTTPStatus.FORBIDDEN, (name, response.text)
            assert code_of(name, response) == "forbidden"
        elif (
            is_stranger
            and not row.hides
            and ("{" in name or row.names_something)
            and not reads_shared
        ):
            assert response.status_code == HTTPStatus.NOT_FOUND, (name, response.text)
        else:
            assert response.status_code == row.status, (name, response.text)
            if name.startswith("DELETE "):
                things = await world.things()


def test_rules_are_those_of_the_rows() -> None:
    for (method, path), rule in ENDPOINT_POLICIES.items():
        row = ROWS[f"{method} {path}"]
        needed = None if row.scope in {"admin", "any"} else Permission(row.scope)
        assert rule.any_scope == (row.scope == "any")
        assert (rule.permission, rule.users, rule.tokens) == (needed, row.users, row.tokens)


def test_documentation_has_the_same_rules() -> None:
    document = (ROOT / "docs/security.md").read_text()
    told = re.findall(
        r"^\| `(\w+ /\S*)` \| `?([^`|]+?)`? \| (yes)? ?\| (yes)? ?\|$", document, re.MULTILINE
    )

    assert {name: (scope, bool(users), bool(tokens)) for name, scope, users, tokens in told} == {
        name: (row.scope.replace("admin", "admin only"), row.users, row.tokens)
        for name, row in ROWS.items()
    }

"""NUL, which PostgreSQL stores in no text, and what only looks like it."""

from typing import Any

import httpx2
import pytest

pytestmark = pytest.mark.anyio

NUL, ESCAPE = "a\x00b", "a\\u0000b"


def bodies(agent_id: str, text: str) -> dict[str, dict[str, Any]]:
    """Return requests that have a text where it is stored, or shown to a model."""
    message = {"role": "user", "content": text}
    return {
        "/v1/conversations": {"metadata": {"k": text}, "items": [message]},
        "/v1/responses": {"model": agent_id, "input": text, "metadata": {"k": text}},
        "/v1/chat/completions": {"model": agent_id, "messages": [message]},
        "/agui/" + agent_id: {
            "threadId": "t", "runId": "r", "messages": [{"id": "m", **message}],
        },
        "/api/chat": {
            "id": "c", "agent": agent_id,
            "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": text}]}],
        },
    }  # fmt: skip


async def test_nul_is_refused_and_its_escape_is_a_text(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    for path, body in bodies(agent_id, NUL).items():
        refused = await client.post(path, json=body)
        assert refused.status_code in {400, 422}, (path, refused.text)
        assert "NUL" in refused.text, path
    for path, body in bodies(agent_id, ESCAPE).items():
        taken = await client.post(path, json=body)
        assert taken.status_code == 200, (path, taken.text)


async def test_deep_json_is_refused(client: httpx2.AsyncClient, agent_id: str) -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"properties": deep}
    item = {"role": "user", "content": [{"type": "input_text", "text": "Hi", "x": deep}]}
    tool = {"type": "function", "name": "t", "parameters": deep}
    for path, body in {
        "/v1/conversations": {"items": [item]},
        "/v1/responses": {"model": agent_id, "input": "Hi", "tools": [tool]},
    }.items():
        refused = await client.post(path, json=body)
        assert refused.status_code == 400, (path, refused.text)

"""An agent's version has exact versions of its tools; changing a tool makes a new one."""

import json
from typing import Any
from uuid import UUID

import anyio
import httpx2
import pytest

from app.core.database import Database
from app.core.database.transactions import TransactionScript
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID
from app.services.tool_ports import AgentTools, Approval, OnUnknown, ToolKind
from app.services.turns.context.persona_cache import PersonaCache
from app.services.turns.records import Persona
from app.services.turns.storage import turn_statements
from app.services.turns.storage.turn_rows import read_persona
from app.state import State
from tests.tools.conftest import definition, make_tool

pytestmark = pytest.mark.anyio


async def agent_with(client: httpx2.AsyncClient, *tools: dict[str, Any], **more: Any) -> str:
    body = {"name": "Ada", "tools": [{"tool_id": tool["id"]} for tool in tools]} | more
    made = await client.post("/agents", json=body)
    assert made.status_code == 201, made.text
    return made.json()["id"]


async def agent(client: httpx2.AsyncClient, agent_id: str) -> dict[str, Any]:
    return (await client.get(f"/agents/{agent_id}")).json()


def pin(tool: dict[str, Any], version: int, approval: str | None = None) -> dict[str, Any]:
    return {"tool_id": tool["id"], "version": version, "approval": approval}


async def test_agent_without_tools_has_none(client: httpx2.AsyncClient) -> None:
    read = await agent(client, await agent_with(client))

    assert (read["tools"], read["tool_policy"], read["output_schema"]) == ([], None, None)


async def test_tools_are_pinned_at_their_newest_version(client: httpx2.AsyncClient) -> None:
    tool = await make_tool(client, **definition())
    await client.put(f"/tools/{tool['id']}", json={"description": "Second."})
    agent_id = await agent_with(client, tool)

    assert (await agent(client, agent_id))["tools"] == [pin(tool, 2)]
    older = await client.put(f"/agents/{agent_id}", json={"tools": [pin(tool, 1, "always")]})
    assert older.json()["tools"] == [pin(tool, 1, "always")]
    assert older.json()["version"] == 2
    same = await client.put(f"/agents/{agent_id}", json={"tools": [pin(tool, 1, "always")]})
    assert same.json()["version"] == 2


async def test_change_of_a_tool_makes_versions_of_its_agents_and_a_restore_takes_it_back(
    client: httpx2.AsyncClient,
) -> None:
    tool, other = [await make_tool(client, **definition(name=name)) for name in ("a", "b")]
    first, second = [await agent_with(client, tool, other) for _ in range(2)]
    without = await agent_with(client, other)

    await client.put(f"/tools/{tool['id']}", json={"description": "Second."})

    for agent_id in (first, second):
        read = await agent(client, agent_id)
        assert (read["version"], read["tools"]) == (2, [pin(tool, 2), pin(other, 1)])
    assert (await agent(client, without))["version"] == 1
    restored = await client.post(f"/agents/{first}/versions/1/restore")
    assert (restored.json()["version"], restored.json()["tools"]) == (
        3,
        [pin(tool, 1), pin(other, 1)],
    )
    versions = (await client.get(f"/agents/{first}/versions")).json()
    assert [version["tools"][0]["version"] for version in versions] == [1, 2, 1]


async def test_change_that_fails_for_one_agent_changes_nothing(client: httpx2.AsyncClient) -> None:
    large = {"type": "object", "description": "x" * 31_000}
    tools = [await make_tool(client, **definition(name=f"t{n}")) for n in range(3)]
    agent_id = await agent_with(client, *tools)
    for tool in tools[:2]:
        http = {"method": "GET", "url": "https://api.example.com/"}
        changed = await client.put(f"/tools/{tool['id']}", json={"parameters": large, "http": http})
        assert changed.status_code == 200, changed.text

    http = {"method": "GET", "url": "https://api.example.com/"}
    refused = await client.put(f"/tools/{tools[2]['id']}", json={"parameters": large, "http": http})

    assert (refused.status_code, refused.json()["code"]) == (422, "too-many-tools")
    assert (await client.get(f"/tools/{tools[2]['id']}")).json()["version"] == 1
    assert (await agent(client, agent_id))["version"] == 3


async def test_tool_in_use_is_not_archived(client: httpx2.AsyncClient) -> None:
    tool = await make_tool(client, **definition())
    agent_id = await agent_with(client, tool)

    refused = await client.delete(f"/tools/{tool['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "tool-in-use")

    await client.put(f"/agents/{agent_id}", json={"tools": []})
    assert (await client.delete(f"/tools/{tool['id']}")).status_code == 204
    for response in (
        await client.post(f"/agents/{agent_id}/versions/1/restore"),
        await client.put(f"/agents/{agent_id}", json={"tools": [{"tool_id": tool["id"]}]}),
    ):
        assert (response.status_code, response.json()["code"]) == (409, "tool-archived")
    assert (await agent(client, agent_id))["version"] == 2


async def test_tools_of_an_agent_have_different_names(client: httpx2.AsyncClient) -> None:
    first = await make_tool(client, **definition(name="a"))
    await client.put(f"/tools/{first['id']}", json={"name": "b"})
    second = await make_tool(client, **definition(name="a"))

    tools = [{"tool_id": first["id"], "version": 1}, {"tool_id": second["id"]}]
    refused = await client.post("/agents", json={"name": "A", "tools": tools})

    assert (refused.status_code, refused.json()["code"]) == (409, "tool-name-taken")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"tools": [{"tool_id": "01900000-0000-7000-8000-00000000000a"}]}, "tool-not-found"),
        ({"tools": [{"tool_id": "x"}]}, "request-invalid"),
        ({"tools": [{"tool_id": "{tool}"}, {"tool_id": "{tool}"}]}, "request-invalid"),
        ({"tools": [{"tool_id": "{tool}", "version": 7}]}, "version-not-found"),
        ({"tools": [{"tool_id": "{tool}", "approval": "maybe"}]}, "request-invalid"),
        ({"tools": [{"tool_id": "{tool}", "more": 1}]}, "request-invalid"),
        ({"tools": None}, "request-invalid"),
        ({"tool_policy": {"max_steps": 33}}, "request-invalid"),
        ({"tool_policy": {"max_calls": 129}}, "request-invalid"),
        ({"tool_policy": {"max_parallel": 0}}, "request-invalid"),
        ({"tool_policy": {"max_usd_per_turn": 0}}, "request-invalid"),
        ({"tool_policy": {"on_unknown": "hope"}}, "request-invalid"),
        ({"output_schema": {"$ref": "https://example.com"}}, "schema-not-supported"),
        ({"output_schema": []}, "request-invalid"),
        ({"output_schema": {"const": "\x00"}}, "request-invalid"),
    ],
)
async def test_wrong_tools_of_an_agent_are_refused(
    client: httpx2.AsyncClient, fields: dict[str, Any], code: str
) -> None:
    tool = await make_tool(client, **definition())
    text = json.dumps({"name": "Ada"} | fields).replace("{tool}", tool["id"])

    response = await client.post("/agents", json=json.loads(text))

    assert response.json()["code"] == code, response.text
    assert response.status_code == (404 if code.endswith("not-found") else 422)


async def test_policy_and_schema_are_kept_as_they_were_given(client: httpx2.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}
    agent_id = await agent_with(client, tool_policy={"max_steps": 3}, output_schema=schema)

    read = await agent(client, agent_id)
    assert read["tool_policy"] == {
        "max_steps": 3, "max_calls": 32, "max_parallel": 4, "max_usd_per_turn": None,
        "on_unknown": "fail", "spoken_filler": None,
    }  # fmt: skip
    assert [*read["output_schema"]["properties"]] == ["z", "a"]
    again = await client.put(f"/agents/{agent_id}", json=read)
    assert (again.status_code, again.json()["version"]) == (200, 1)
    cleared = await client.put(f"/agents/{agent_id}", json={"output_schema": None})
    assert cleared.json()["output_schema"] is None


async def test_agent_and_tool_that_change_at_once_both_change(client: httpx2.AsyncClient) -> None:
    tool = await make_tool(client, **definition())
    agents = [await agent_with(client, tool) for _ in range(3)]

    async def change_tool(number: int) -> None:
        await client.put(f"/tools/{tool['id']}", json={"description": f"Number {number}."})

    async def change_agent(agent_id: str) -> None:
        await client.put(
            f"/agents/{agent_id}", json={"name": "B", "tools": [{"tool_id": tool["id"]}]}
        )

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(change_tool, number)
            for agent_id in agents:
                group.start_soon(change_agent, agent_id)

    assert (await client.get(f"/tools/{tool['id']}")).json()["version"] == 5
    for agent_id in agents:
        read = await agent(client, agent_id)
        assert (read["name"], read["tools"]) == ("B", [pin(tool, 5)])


async def tools_of(database: Database, agent_id: str, version: int) -> AgentTools | None:
    """Load the persona as a turn does."""

    def load() -> TransactionScript[Persona]:
        ((row,),) = yield [
            turn_statements.PERSONA(
                workspace_id_=DEFAULT_WORKSPACE_ID, agent_id_=UUID(agent_id), version_=version
            )
        ]
        return (yield from read_persona(DEFAULT_WORKSPACE_ID, row))

    return (await database.run(load)).tools


async def test_turn_has_the_tools_of_its_version_sorted_by_name(
    client: httpx2.AsyncClient, database: Database
) -> None:
    late = await make_tool(client, **definition(name="z_order"))
    early = await make_tool(client, name="a_pick", description="Picks.", kind="client")
    agent_id = await agent_with(client, late, tool_policy={"max_calls": 5, "on_unknown": "tell"})
    tools = [pin(late, 1, "always"), pin(early, 1)]
    await client.put(f"/agents/{agent_id}", json={"tools": tools})
    await client.put(f"/tools/{late['id']}", json={"description": "Changed."})

    first, second, third = [await tools_of(database, agent_id, version) for version in (1, 2, 3)]

    assert first
    assert second
    assert third
    assert [*first.tools] == ["z_order"]
    assert [*second.tools] == ["a_pick", "z_order"] == [each.name for each in second.definitions]
    assert second.tools["z_order"].definition.description == "Looks up an order by its number."
    assert third.tools["z_order"].definition.description == "Changed."
    assert second.tools["z_order"].approval is Approval.ALWAYS
    assert second.tools["a_pick"].kind is ToolKind.CLIENT
    assert second.tools["a_pick"].http is None
    assert second.policy.max_calls == 5
    assert second.policy.on_unknown is OnUnknown.TELL
    assert await tools_of(database, await agent_with(client), 1) is None


async def test_turn_has_its_tools_without_a_further_statement(
    client: httpx2.AsyncClient, state: State
) -> None:
    tool = await make_tool(client, **definition())
    agent_id = await agent_with(client, tool)
    session = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]

    first = await state["turns"].start(ADMIN, UUID(session), "Hi")
    await state["turns"].result(first)
    second = await state["turns"].start(ADMIN, UUID(session), "Hi")
    await state["turns"].result(second)

    assert first.record.persona.tools
    assert second.record.persona is first.record.persona


def test_cache_is_bounded_by_what_it_holds() -> None:
    cache = PersonaCache()
    keys = [(DEFAULT_WORKSPACE_ID, DEFAULT_WORKSPACE_ID, number) for number in range(200)]
    for key in keys:
        cache.put(key, Persona(key[2], "x" * 200_000, None, None, None, None, None, None))

    kept = [key[2] for key in keys if cache.get(key)]
    assert kept == [*range(120, 200)]

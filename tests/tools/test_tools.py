"""Tools: versions, names, archive, what is refused, and who may not see them."""

from typing import Any

import httpx2
import pytest

from app.services.tools.pinning import MAX_TOOLS
from tests.support.application import ADMIN_KEY
from tests.tools.conftest import definition, make_tool, store_secret

pytestmark = pytest.mark.anyio

CLIENT_TOOL: dict[str, Any] = {
    "name": "pick",
    "description": "Lets the user pick.",
    "kind": "client",
}


async def test_tool_has_the_defaults_of_its_method_where_nothing_is_given(
    client: httpx2.AsyncClient,
) -> None:
    reading = await make_tool(client, **definition())
    writing = await make_tool(client, **definition(name="cancel_order", http={"method": "POST"}))
    by_client = await make_tool(client, **CLIENT_TOOL)

    assert (reading["effect"], reading["approval"]) == ("read", "never")
    assert (writing["effect"], writing["approval"]) == ("once", "after_untrusted")
    assert (by_client["effect"], by_client["approval"]) == ("once", "after_untrusted")
    for field, value in {
        "version": 1, "approval_by": "operator", "approval_expires_seconds": 86400,
        "expires_seconds": 600, "timeout_seconds": 30, "max_result_bytes": 16384, "trusted": True,
        "price_usd": None, "output_schema": None, "archived_at": None,
    }.items():  # fmt: skip
        assert reading[field] == value, field
    assert by_client["parameters"] == {
        "type": "object", "properties": {}, "additionalProperties": False,
    }  # fmt: skip


async def test_signing_secret_is_shown_once(client: httpx2.AsyncClient) -> None:
    made = await make_tool(client, **definition())

    assert made.pop("signing_secret").startswith("whsec_")
    assert (await client.get(f"/tools/{made['id']}")).json() == made
    assert (await client.get("/tools")).json() == [made]


async def test_default_effect_follows_the_method_and_a_given_one_stays(
    client: httpx2.AsyncClient,
) -> None:
    tool = await make_tool(client, **definition())
    path = f"/tools/{tool['id']}"
    http = tool["http"] | {"method": "DELETE"}

    changed = (await client.put(path, json={"http": http})).json()
    explicit = (await client.put(path, json={"effect": "idempotent"})).json()
    reset = (await client.patch(path, json={"effect": None})).json()

    assert (changed["effect"], changed["approval"]) == ("once", "after_untrusted")
    assert (explicit["effect"], explicit["approval"]) == ("idempotent", "never")
    assert reset["effect"] == "once"


async def test_each_change_makes_a_version_and_no_change_makes_none(
    client: httpx2.AsyncClient,
) -> None:
    tool = await make_tool(client, **definition())
    path = f"/tools/{tool['id']}"
    await client.put(path, json={"description": "Finds orders."})
    same = await client.put(path, json={"description": "Finds orders."})
    last = await client.patch(path, json={"timeout_seconds": 5, "name": "find_order"})

    assert (same.json()["version"], last.json()["version"]) == (2, 3)
    versions = (await client.get(f"{path}/versions")).json()
    assert [
        (v["version"], v["name"], v["description"], v["timeout_seconds"]) for v in versions
    ] == [
        (3, "find_order", "Finds orders.", 5),
        (2, "get_order", "Finds orders.", 30),
        (1, "get_order", "Looks up an order by its number.", 30),
    ]
    assert {v["tool_id"] for v in versions} == {tool["id"]}


async def test_what_get_gave_can_be_put_back(client: httpx2.AsyncClient) -> None:
    tool = await make_tool(client, **definition())
    read = (await client.get(f"/tools/{tool['id']}")).json()

    put = await client.put(f"/tools/{tool['id']}", json=read)
    wrong = await client.put(f"/tools/{tool['id']}", json={"kind": "client"})

    assert put.status_code == 200, put.text
    assert (wrong.status_code, wrong.json()["code"]) == (422, "request-invalid")


async def test_order_of_properties_is_kept(client: httpx2.AsyncClient) -> None:
    names = ["zeta", "alpha", "mu", "b"]
    properties = {name: {"type": "string"} for name in names}
    tool = await make_tool(
        client, **CLIENT_TOOL, parameters={"type": "object", "properties": properties}
    )

    read = (await client.get(f"/tools/{tool['id']}")).json()
    assert [*read["parameters"]["properties"]] == names


async def test_name_is_taken_until_the_tool_is_archived(client: httpx2.AsyncClient) -> None:
    first = await make_tool(client, **definition())
    other = await make_tool(client, **definition(name="other"))

    again = await client.post("/tools", json=definition())
    renamed = await client.put(f"/tools/{other['id']}", json={"name": "get_order"})
    archived = await client.delete(f"/tools/{first['id']}")
    third = await client.post("/tools", json=definition())

    for refused in (again, renamed):
        assert (refused.status_code, refused.json()["code"]) == (409, "tool-name-taken")
    assert archived.status_code == 204
    assert third.status_code == 201
    assert [tool["id"] for tool in (await client.get("/tools?archived=true")).json()] == [
        first["id"]
    ]
    assert (await client.delete(f"/tools/{first['id']}")).status_code == 204
    changed = await client.put(f"/tools/{first['id']}", json={"name": "x"})
    assert (changed.status_code, changed.json()["code"]) == (409, "tool-archived")


async def test_tools_come_in_pages(client: httpx2.AsyncClient) -> None:
    made = [(await make_tool(client, **definition(name=f"t{n}")))["id"] for n in range(5)]

    seen: list[str] = []
    url: str | None = "/tools?limit=2"
    while url:
        response = await client.get(url)
        seen += [tool["id"] for tool in response.json()]
        url = response.links.get("next", {}).get("url")
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "has space"}, "request-invalid"),
        ({"name": "x" * 65}, "request-invalid"),
        ({"name": ""}, "request-invalid"),
        ({"description": ""}, "request-invalid"),
        ({"description": "x" * 1025}, "request-invalid"),
        ({"kind": "builtin"}, "request-invalid"),
        ({"effect": "harmless"}, "request-invalid"),
        ({"timeout_seconds": 301}, "request-invalid"),
        ({"max_result_bytes": 65537}, "request-invalid"),
        ({"approval_expires_seconds": 59}, "request-invalid"),
        ({"unknown": 1}, "request-invalid"),
        ({"http": {"method": "TRACE"}}, "request-invalid"),
        ({"kind": "client"}, "tool-invalid"),
        ({"output_schema": {"type": "string"}}, "tool-invalid"),
        ({"parameters": {"type": "array"}}, "schema-not-supported"),
        ({"parameters": {"type": "object", "properties": {"x": {"$ref": "http://x"}}}},
         "schema-not-supported"),
        ({"http": {"url": "https://api.example.com/{unknown}"}}, "tool-invalid"),
        ({"http": {"url": "https://{number}.example.com/"}}, "tool-invalid"),
        ({"http": {"url": "https://api.example.com:{number}/"}}, "tool-invalid"),
        ({"http": {"url": "{number}://api.example.com/"}}, "tool-invalid"),
        ({"http": {"url": "https://user:pass@api.example.com/"}}, "tool-invalid"),
        ({"http": {"url": "https://api.example.com/#{number}"}}, "tool-invalid"),
        ({"http": {"url": "https://api.example.com/{{secrets.KEY}}"}}, "tool-invalid"),
        ({"http": {"url": "https://api.example.com/a b"}}, "tool-invalid"),
        ({"http": {"url": "https://api.example.com\\@evil.example/"}}, "tool-invalid"),
        ({"http": {"url": "https://api.example.com:99999/"}}, "tool-invalid"),
        ({"http": {"url": "ftp://api.example.com/"}}, "tool-invalid"),
        ({"http": {"url": "/orders"}}, "tool-invalid"),
        ({"http": {"body": {"x": 1}}}, "tool-invalid"),
        ({"http": {"select": "data"}}, "tool-invalid"),
        ({"http": {"headers": {"Host": "evil.example"}}}, "tool-invalid"),
        ({"http": {"headers": {"webhook-signature": "v1,x"}}}, "tool-invalid"),
        ({"http": {"headers": {"Idempotency-Key": "x"}}}, "tool-invalid"),
        ({"http": {"headers": {"Transfer-Encoding": "chunked"}}}, "tool-invalid"),
        ({"http": {"headers": {"X-A": "a\r\nX-B: b"}}}, "tool-invalid"),
        ({"http": {"headers": {"X A": "a"}}}, "tool-invalid"),
        ({"http": {"headers": {"X-A": "a", "x-a": "b"}}}, "tool-invalid"),
        ({"http": {"headers": {"X-A": "{{user.name}}"}}}, "tool-invalid"),
        ({"http": {"headers": {"X-A": "{{user.id"}}}, "tool-invalid"),
        ({"http": {"query": {"a": "{{environ.PATH}}"}}}, "tool-invalid"),
        ({"http": {"headers": {"X-A": "{{secrets.NONE}}"}}}, "secret-not-found"),
        ({"http": {"url": "https://127.0.0.1/{number}"}}, "address-not-allowed"),
        ({"http": {"url": "https://2130706433/{number}"}}, "address-not-allowed"),
        ({"http": {"url": "https://[::1]/{number}"}}, "address-not-allowed"),
        ({"http": {"url": "https://169.254.169.254/{number}"}}, "address-not-allowed"),
        ({"http": {"url": "https://localhost/{number}"}}, "address-not-allowed"),
        ({"http": {"url": "http://api.example.com/{number}"}}, "address-not-allowed"),
    ],
)  # fmt: skip
async def test_wrong_tool_is_refused_at_once(
    client: httpx2.AsyncClient, changes: dict[str, Any], code: str
) -> None:
    made = await client.post("/tools", json=definition(**changes))

    assert (made.status_code, made.json()["code"]) == (422, code), made.text
    assert (await client.get("/tools")).json() == []


async def test_secret_goes_to_its_hosts_whatever_becomes_of_the_url(
    client: httpx2.AsyncClient,
) -> None:
    await store_secret(client, "api.example.com")
    headers = {"Authorization": "Bearer {{secrets.SHOP_KEY}}"}
    tool = await make_tool(client, **definition(http={"headers": headers}))

    http = tool["http"] | {"url": "https://evil.example/orders/{number}"}
    moved = await client.put(f"/tools/{tool['id']}", json={"http": http})

    assert (moved.status_code, moved.json()["code"]) == (422, "secret-host-mismatch")
    used = (await client.get("/secrets")).json()[0]["used_by"]
    assert used == [tool["id"]]


async def test_tool_of_another_workspace_is_not_there(client: httpx2.AsyncClient) -> None:
    workspace = (await client.post("/workspaces", json={"name": "other"})).json()["id"]
    elsewhere = {
        "X-Workspace-Id": workspace,
        "Authorization": f"Bearer {ADMIN_KEY.get_secret_value()}",
    }
    made = await client.post("/tools", json=definition(), headers=elsewhere)
    tool_id = made.json()["id"]

    assert (await client.get("/tools")).json() == []
    for method, path, body in (
        ("GET", f"/tools/{tool_id}", None),
        ("PUT", f"/tools/{tool_id}", {"name": "x"}),
        ("DELETE", f"/tools/{tool_id}", None),
        ("GET", f"/tools/{tool_id}/versions", None),
        ("POST", f"/tools/{tool_id}/test", {}),
        ("POST", "/agents", {"name": "Ada", "tools": [{"tool_id": tool_id}]}),
    ):
        response = await client.request(method, path, json=body)
        assert (response.status_code, response.json()["code"]) == (404, "tool-not-found"), path


async def test_changes_are_in_the_audit_log(client: httpx2.AsyncClient) -> None:
    tool = await make_tool(client, **definition())
    agent = await client.post("/agents", json={"name": "A", "tools": [{"tool_id": tool["id"]}]})
    await client.put(f"/tools/{tool['id']}", json={"description": "New."})
    await client.put(f"/agents/{agent.json()['id']}", json={"tools": []})
    await client.delete(f"/tools/{tool['id']}")

    entries = (await client.get("/audit")).json()
    told = [(each["action"], each["details"]) for each in entries if "tool" in each["action"]]
    assert told == [
        ("tool.archived", {}),
        ("tool.updated", {"version": 2, "fields": ["description"], "agents": 1}),
        ("tool.created", {"name": "get_order"}),
    ]
    assert entries[1]["details"]["fields"] == ["tools"]


async def test_agent_has_at_most_64_tools(client: httpx2.AsyncClient) -> None:
    ids = [
        (await make_tool(client, **CLIENT_TOOL | {"name": f"t{n}"}))["id"]
        for n in range(MAX_TOOLS + 1)
    ]
    tools = [{"tool_id": each} for each in ids]

    most = await client.post("/agents", json={"name": "A", "tools": tools[:-1]})
    more = await client.post("/agents", json={"name": "A", "tools": tools})

    assert most.status_code == 201
    assert (more.status_code, more.json()["code"]) == (422, "too-many-tools")

"""Tools from OpenAPI documents: what they become, and a dry run that stores nothing."""

import json
from typing import Any

import httpx2
import pytest

from tests.support.tool_server import ToolServer
from tests.tools.conftest import definition, make_tool

pytestmark = pytest.mark.anyio

OLD: dict[str, Any] = {
    "openapi": "3.0.3",
    "servers": [{"url": "https://api.example.com/v1/"}],
    "paths": {
        "/orders/{id}": {
            "parameters": [{"$ref": "#/components/parameters/Id"}],
            "get": {
                "operationId": "orders.get",
                "summary": "Get an order",
                "description": "With its lines.",
                "parameters": [
                    {"name": "limit", "in": "query",
                     "schema": {"type": "integer", "minimum": 0, "exclusiveMinimum": True}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                ],
            },
            "put": {
                "operationId": "orders.put",
                "parameters": [{"name": "dry", "in": "query", "schema": {"type": "boolean"}}],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/O"}}},
                },
            },
        },
        "/files": {
            "post": {
                "operationId": "upload",
                "requestBody": {"required": True, "content": {"multipart/form-data": {}}},
            },
            "get": {"operationId": "list", "parameters": [
                {"name": "X-Key", "in": "header", "required": True, "schema": {}}]},
        },
        "/tree": {
            "post": {
                "operationId": "tree",
                "requestBody": {"content": {"application/json": {
                    "schema": {"$ref": "#/components/schemas/Tree"}}}},
            },
        },
        "/nameless": {"get": {}},
    },
    "components": {
        "parameters": {"Id": {"name": "id", "in": "path", "required": True,
                              "description": "The order's id.", "schema": {"type": "string"}}},
        "schemas": {
            "O": {
                "type": "object",
                "required": ["note"],
                "properties": {
                    "note": {"type": "string", "nullable": True, "example": "x"},
                    "example": {"type": "string"},
                },
            },
            "Tree": {"type": "object", "properties": {"c": {"$ref": "#/components/schemas/Tree"}}},
        },
    },
}  # fmt: skip


async def shown(client: httpx2.AsyncClient, **body: Any) -> dict[str, dict[str, Any]]:
    response = await client.post("/tools/import", json={"openapi": OLD} | body)
    assert response.status_code == 200, response.text
    return {each["operation_id"]: each for each in response.json()["tools"]}


async def test_dry_run_shows_every_operation_and_stores_nothing(client: httpx2.AsyncClient) -> None:
    tools = await shown(client)

    assert [*tools] == ["orders.get", "orders.put", "list", "upload", "tree"]
    got = tools["orders.get"]["definition"]
    assert (got["name"], got["description"]) == ("orders_get", "Get an order\nWith its lines.")
    assert got["http"]["url"] == "https://api.example.com/v1/orders/{id}"
    assert got["parameters"] == {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "The order's id."},
            "limit": {"type": "integer", "exclusiveMinimum": 0},
        },
        "required": ["id"],
    }
    put = tools["orders.put"]["definition"]
    assert put["http"]["url"] == "https://api.example.com/v1/orders/{id}?dry={dry}"
    assert put["parameters"]["properties"]["note"] == {"type": ["string", "null"]}
    assert put["parameters"]["properties"]["example"] == {"type": "string"}
    assert put["parameters"]["required"] == ["id", "note"]
    problems = {name: tool["problem"] for name, tool in tools.items() if not tool["definition"]}
    assert problems == {
        "list": "it needs the header 'X-Key': set it in `headers`",
        "upload": "its body is not JSON",
        "tree": "its schemas are too large, or refer to themselves",
    }
    assert (await client.get("/tools")).json() == []


async def test_chosen_operations_become_tools_that_work(
    client: httpx2.AsyncClient, server: ToolServer
) -> None:
    tools = await shown(
        client,
        include=["orders.put", "list"],
        base_url=server.url,
        headers={"X-Key": "k"},
        dry_run=False,
    )

    assert all(tool["signing_secret"].startswith("whsec_") for tool in tools.values())
    stored = {tool["name"]: tool for tool in (await client.get("/tools")).json()}
    assert sorted(stored) == ["list", "orders_put"]
    assert stored["orders_put"]["effect"] == "once"
    body = {"arguments": {"id": "7", "note": None, "dry": True}, "confirm": True}
    tested = await client.post(f"/tools/{stored['orders_put']['id']}/test", json=body)
    assert tested.json()["status"] == "completed", tested.text
    assert server.requests[0].target == "/orders/7?dry=true"
    assert server.requests[0].json == {"note": None}
    assert server.requests[0].headers["x-key"] == "k"


async def test_all_are_created_or_none(client: httpx2.AsyncClient) -> None:
    await make_tool(client, **definition(name="orders_put"))

    taken = await client.post(
        "/tools/import",
        json={"openapi": OLD, "include": ["orders.get", "orders.put"], "dry_run": False},
    )
    unusable = await client.post(
        "/tools/import",
        json={"openapi": OLD, "include": ["orders.get", "upload"], "dry_run": False},
    )

    assert (taken.status_code, taken.json()["code"]) == (409, "tool-name-taken")
    assert (unusable.status_code, unusable.json()["code"]) == (422, "tool-invalid")
    assert len((await client.get("/tools")).json()) == 1
    problem = (await shown(client))["orders.put"]["problem"]
    assert problem == "Another tool of the workspace has this name."


@pytest.mark.parametrize(
    "body",
    [
        {"openapi": {}},
        {"openapi": {"openapi": "2.0"}},
        {"openapi": {"openapi": "3.1.0", "paths": {}}},
        {"openapi": {"openapi": "3.1.0", "servers": [{"url": "/v1"}]}},
        {"openapi": {"openapi": "3.1.0", "servers": [{"url": "https://{region}.example.com"}]}},
        {"openapi": OLD, "include": ["none"]},
        {"openapi": OLD | {"info": {"description": "x" * (1 << 20)}}},
    ],
)
async def test_document_that_cannot_be_used_is_refused(
    client: httpx2.AsyncClient, body: dict[str, Any]
) -> None:
    response = await client.post("/tools/import", json=body)

    assert (response.status_code, response.json()["code"]) == (422, "tool-invalid")


@pytest.mark.parametrize(
    "change",
    [
        {"paths": []},
        {"paths": {"/x": None}},
        {"paths": {"/x": {"get": []}}},
        {"paths": {"/x": {"get": {"operationId": "a", "parameters": {}}}}},
        {"paths": {"/x": {"get": {"operationId": "a", "parameters": [1, None, {"in": "path"}]}}}},
        {"paths": {"/x": {"get": {"operationId": "a", "parameters": [{"$ref": "http://x"}]}}}},
        {"paths": {"/x": {"get": {"operationId": "a", "parameters": [{"$ref": "#/none"}]}}}},
        {"paths": {"/x{y}": {"get": {"operationId": "a"}}}},
        {"paths": {"no slash": {"get": {"operationId": "a"}}}},
        {"paths": {"/x": {"post": {"operationId": "a", "requestBody": {"content": 1}}}}},
        {"paths": {"/x": {"get": {"operationId": "é" * 300, "summary": 1}}}},
        {"paths": {"/x": {"get": {"operationId": "a", "parameters": [
            {"name": "p", "in": "query", "schema": {"type": "nothing"}}]}}}},
    ],
)  # fmt: skip
async def test_hostile_document_is_no_error_of_the_server(
    client: httpx2.AsyncClient, change: dict[str, Any]
) -> None:
    for dry_run in (True, False):
        response = await client.post(
            "/tools/import", json={"openapi": OLD | change, "dry_run": dry_run}
        )
        assert response.status_code in {200, 422}, response.text


async def test_references_that_double_are_bounded(client: httpx2.AsyncClient) -> None:
    schemas: dict[str, Any] = {
        f"S{n}": {"type": "object", "properties": {
            name: {"$ref": f"#/components/schemas/S{n + 1}"} for name in "ab"}}
        for n in range(40)
    }  # fmt: skip
    text = json.dumps(OLD).replace("#/components/schemas/O", "#/components/schemas/S0")
    document = json.loads(text)
    document["components"]["schemas"] = schemas | {"S40": {}, "Tree": {}}

    response = await client.post("/tools/import", json={"openapi": document})

    problems = {each["operation_id"]: each["problem"] for each in response.json()["tools"]}
    assert problems["orders.put"] == "its schemas are too large, or refer to themselves"

"""The documentation: complete, and served from our own files."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from app.core.errors import AppError
from app.http.permissions import PUBLIC_PATHS
from tests.support.documented_statuses import undocumented

ROOT = Path(__file__).parent.parent


def leaves(error: type[AppError]) -> Iterator[type[AppError]]:
    for child in error.__subclasses__():
        yield child
        yield from leaves(child)


def test_every_error_is_documented_once() -> None:
    importlib.import_module("app.main")  # joins every part, so that every error class exists
    codes = {error.code for error in leaves(AppError) if hasattr(error, "code")}
    documented = re.findall(r"^### (\S+)$", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)

    assert sorted(codes) == sorted(documented)


@pytest.mark.anyio
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_page_loads_nothing_from_another_host(client: httpx2.AsyncClient, page: str) -> None:
    html = (await client.get(page)).text

    loaded = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert loaded
    for url in loaded:
        assert url.startswith(("/assets/", "data:")), url
        if url.startswith("/"):
            assert (await client.get(url)).status_code == 200


@pytest.mark.anyio
async def test_openapi_names_every_path_of_the_seed(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    for method, path in (
        ("post", "/agents"),
        ("get", "/agents"),
        ("get", "/agents/{agent_id}"),
        ("put", "/agents/{agent_id}"),
        ("post", "/sessions"),
        ("get", "/sessions/{session_id}"),
        ("post", "/messages/text"),
        ("post", "/messages/voice"),
        ("get", "/health"),
    ):
        assert method in paths[path]


@pytest.mark.anyio
async def test_openapi_says_how_to_send_a_key(client: httpx2.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()

    (name,) = schema["security"][0]
    assert schema["components"]["securitySchemes"][name]["scheme"] == "bearer"


@pytest.mark.anyio
async def test_openapi_names_every_status_one_by_one(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    for path, operations in paths.items():
        for method, operation in operations.items():
            named = set(operation["responses"])
            assert all(status.isdigit() for status in named), (method, path)
            if path not in PUBLIC_PATHS:
                assert {"401", "403", "404", "429", "503"} <= named, (method, path)
            if "requestBody" in operation:
                invalid = "400" if path.startswith("/v1/") else "422"
                assert {"400", "408", "413", "415", invalid} <= named, (method, path)
    for status in ("409", "502", "504"):
        assert status in paths["/messages/text"]["post"]["responses"]


@pytest.mark.anyio
async def test_status_that_is_not_documented_is_noticed(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    answers = {
        ("get", "/agents", 200),
        ("get", "/agents", 409),
        ("get", "/agents/1", 418),
        ("get", "/agents/1/versions", 404),
        ("get", "/health/live", 503),
        ("get", "/nowhere", 404),
        ("patch", "/agents", 405),
        ("get", "/agents", 0),
    }

    wrong = undocumented(answers, paths)

    expected = ["GET /agents/{agent_id}: 418", "GET /agents: 409", "GET /health/live: 503"]
    assert wrong == expected


@pytest.mark.anyio
async def test_operations_have_short_ids_which_generated_clients_use_as_names(
    client: httpx2.AsyncClient,
) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    ids = [each["operationId"] for operations in paths.values() for each in operations.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+){1,4}", each) for each in ids), ids
    assert paths["/messages/text"]["post"]["operationId"] == "send_text_message"


@pytest.mark.anyio
async def test_changes_have_no_defaults_that_a_generated_client_would_send(
    client: httpx2.AsyncClient,
) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]

    for name in ("AgentUpdate", "SessionUpdate", "KeyUpdate"):
        for field, schema in schemas[name]["properties"].items():
            assert "default" not in schema, (name, field)


@pytest.mark.anyio
async def test_openapi_describes_problems_pages_and_who_needs_no_key(
    client: httpx2.AsyncClient,
) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]

    schemas = "#/components/schemas"
    problem = {"application/problem+json": {"schema": {"$ref": f"{schemas}/Problem"}}}
    openai_error = {"application/json": {"schema": {"$ref": f"{schemas}/OpenAIError"}}}
    for path, operations in paths.items():
        for operation in operations.values():
            assert (operation.get("security") == []) == (path in PUBLIC_PATHS)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    expected = openai_error if path.startswith("/v1/") else problem
                    if path.startswith("/api/chat"):
                        expected = {"text/plain": {"schema": {"type": "string"}}}
                    assert response["content"] == expected
                assert ("Retry-After" in response.get("headers", {})) == (status in {"429", "503"})
    assert "Link" in paths["/sessions"]["get"]["responses"]["200"]["headers"]

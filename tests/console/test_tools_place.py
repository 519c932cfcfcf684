"""Tools, MCP servers and secrets of a workspace, made and given to agents on the page."""

import json
import re
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.console.conftest import DESKTOP, HOSTILE, PHONE, WAIT_MS, OpenPage
from tests.console.test_pages import settle, violations
from tests.console.test_tool_calls import tool_body
from tests.mcp.conftest import sdk_server
from tests.support.tool_server import Answer, ToolServer

SECRET = "sk-never-shown-again"  # a secret of the test


def test_tool_is_made_tried_changed_and_given_to_an_agent(
    open_page: OpenPage, api: httpx2.Client, tool_api: ToolServer
) -> None:
    tool_api.answer = Answer(body=b'{"status": "sent"}')
    agent = api.post("/agents", json={"name": "Clerk"}).json()["id"]
    page = open_page("#/tools")
    page.get_by_role("link", name="New tool", exact=True).click()
    page.get_by_role("textbox", name=re.compile("^Name")).fill("get_order")
    page.get_by_label("Description").fill("Looks up an order.")
    page.get_by_label("URL").fill(f"{tool_api.url}/orders/{{number}}")
    page.get_by_label("Headers").fill("X-Shop: 7")
    parameters = page.get_by_label("Parameters")
    parameters.fill("{not json")
    page.get_by_role("button", name="Make tool").click()
    assert not api.get("/tools").json()
    parameters.fill('{"type": "object", "properties": {"number": {"type": "string"}}}')
    page.get_by_role("button", name="Make tool").click()
    secret = page.get_by_role("dialog").locator("code")
    expect(secret).to_have_text(re.compile("^whsec_"))
    page.get_by_role("button", name="I have stored it").click()
    expect(page.locator("h1")).to_have_text("get_order")

    page.get_by_label("Arguments").fill('{"number": "2041"}')
    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_role("group", name="Result")).to_contain_text('"status":"sent"')
    expect(page.get_by_role("group", name="Request")).to_contain_text("/orders/2041")
    assert tool_api.requests[-1].headers["x-shop"] == "7"
    page.get_by_label("Description").fill("Looks up an order by its number.")
    page.get_by_role("button", name="Save version 2").click()
    expect(page.get_by_text("Saved as version 2.")).to_be_visible()

    page.goto(page.url.partition("#")[0] + f"#/agents/{agent}?tab=tools")
    page.get_by_role("checkbox", name="get_order").check()
    page.get_by_label("Approval of get_order").select_option("always")
    page.get_by_role("button", name="Save version 2").click()
    expect(page.get_by_role("button", name="Save version 3")).to_be_visible(timeout=WAIT_MS)
    (given,) = api.get(f"/agents/{agent}").json()["tools"]
    assert (given["version"], given["approval"]) == (2, "always")


def test_operations_of_an_openapi_document_are_chosen_and_imported(
    open_page: OpenPage, api: httpx2.Client
) -> None:
    answer = {"responses": {"200": {"description": "Fine"}}}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Shop", "version": "1"},
        "servers": [{"url": "https://api.example.com"}],
        "paths": {
            "/orders": {"get": {"operationId": "listOrders", "summary": "Lists.", **answer}},
            "/refunds": {"post": {"operationId": "refund", "summary": "Pays back.", **answer}},
        },
    }
    page = open_page("#/tools")
    page.get_by_role("button", name="Import an OpenAPI document").click()
    page.get_by_label("OpenAPI 3.0 or 3.1").fill(json.dumps(document))
    page.get_by_role("button", name="Show what it would make").click()
    page.get_by_role("checkbox", name="refund").uncheck()
    assert not api.get("/tools").json()

    page.get_by_role("button", name="Make 1 tool").click()

    expect(page.get_by_text("1 tool was made.")).to_be_visible()
    expect(page.get_by_role("link", name="listOrders")).to_be_visible()
    assert [tool["name"] for tool in api.get("/tools").json()] == ["listOrders"]


def test_definition_of_an_mcp_server_is_looked_at_and_accepted(
    open_page: OpenPage, api: httpx2.Client, mcp_port: int
) -> None:
    with sdk_server("modern", mcp_port) as mcp:
        page = open_page("#/tools?tab=servers")
        page.get_by_role("button", name="Add an MCP server").click()
        page.get_by_label("Name").fill("trial")
        page.get_by_label("URL").fill(mcp.url)
        page.get_by_role("button", name="Connect").click()
        server = page.get_by_role("region", name="trial")
        add = server.locator(".call").filter(has_text="Adds two numbers.")
        expect(add).to_contain_text("New", timeout=WAIT_MS)
        add.locator("summary").click()
        expect(add.get_by_role("group", name="add: Parameters")).to_contain_text('"a"')

        page.get_by_role("button", name="Accept add").click()

        expect(add.locator("summary")).to_contain_text("Accepted", timeout=WAIT_MS)
        page.get_by_role("button", name="List again: trial").click()
        expect(page.get_by_text("0 added, 0 changed, 0 removed.")).to_be_visible(timeout=WAIT_MS)
        assert [tool["name"] for tool in api.get("/tools").json()] == ["trial__add"]


def test_headers_of_an_mcp_server_are_changed_and_secrets_are_not_shown(
    open_page: OpenPage, api: httpx2.Client, mcp_port: int
) -> None:
    with sdk_server("modern", mcp_port) as mcp:
        secret = {"name": "SHOP_KEY", "value": SECRET, "hosts": ["127.0.0.1"]}
        api.post("/secrets", json=secret).raise_for_status()
        made = api.post("/mcp-servers", json={"name": "trial", "url": mcp.url}).json()
        page = open_page("#/tools?tab=servers")
        page.get_by_role("button", name="Change: trial").click()
        dialog = page.get_by_role("dialog", name="trial")
        expect(dialog.get_by_label("URL")).to_have_value(mcp.url)
        headers = dialog.get_by_label("Headers")
        headers.fill("X-Shop: {{secrets.NOBODY}}")
        dialog.get_by_role("button", name="Save, and list again").click()
        expect(dialog.get_by_role("alert")).to_contain_text("NOBODY", timeout=WAIT_MS)
        headers.fill("X-Shop: {{secrets.SHOP_KEY}}\nX-Trace: 1")
        dialog.get_by_label("Time").fill("7")

        dialog.get_by_role("button", name="Save, and list again").click()

        expect(dialog).to_have_count(0, timeout=WAIT_MS)
        server = api.get(f"/mcp-servers/{made['id']}").json()
        assert server["headers"] == {"X-Shop": "{{secrets.SHOP_KEY}}", "X-Trace": "1"}
        assert server["timeout_seconds"] == 7
        page.get_by_role("button", name="Change: trial").click()
        expect(headers).to_have_value("X-Shop: {{secrets.SHOP_KEY}}\nX-Trace: 1")
        assert SECRET not in page.content()


def test_secret_is_stored_and_never_shown(open_page: OpenPage, api: httpx2.Client) -> None:
    page = open_page("#/tools?tab=secrets")
    page.get_by_label("Name").fill("SHOP_KEY")
    page.get_by_label("Value").fill(SECRET)
    page.get_by_label("Hosts").fill("api.example.com, shop.example.com")
    page.get_by_role("button", name="Store").click()

    expect(page.get_by_text("{{secrets.SHOP_KEY}}")).to_be_visible()
    expect(page.get_by_text("api.example.com, shop.example.com · not used")).to_be_visible()
    assert SECRET not in page.content()
    assert page.get_by_label("Value").input_value() == ""
    page.get_by_role("button", name="Delete: SHOP_KEY").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No secrets yet.")).to_be_visible()
    assert api.get("/secrets").json() == []


@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "dark"), (PHONE, "light")])
def test_tools_are_accessible_and_hostile_texts_stay_text(
    open_page: OpenPage, api: httpx2.Client, tool_api: ToolServer, size: tuple[int, int], theme: str
) -> None:
    body = tool_body("look", tool_api, description=HOSTILE)
    tool = api.post("/tools", json=body).json()["id"]
    agent = api.post("/agents", json={"name": "Ada", "tools": [{"tool_id": tool}]}).json()["id"]
    api.post("/secrets", json={"name": "K", "value": SECRET, "hosts": ["api.example.com"]})
    page = open_page("#/tools", size=size, color_scheme=theme, bypass_csp=True)
    found: dict[str, list[str]] = {}
    for place in (
        "#/tools", "#/tools/new", f"#/tools/{tool}", "#/tools?tab=servers", "#/tools?tab=secrets",
        f"#/agents/{agent}?tab=tools",
    ):  # fmt: skip
        page.evaluate("(place) => { location.hash = place; }", place)
        settle(page)
        found[place] = violations(page)
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), place
        assert page.locator("img, iframe").count() == 0, place
    assert not {place: lines for place, lines in found.items() if lines}

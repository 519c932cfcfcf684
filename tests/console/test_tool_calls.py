"""Tools on the page: calls in an answer, and what somebody must do before it goes on."""

import re
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import DESKTOP, HOSTILE, PHONE, WAIT_MS, OpenPage
from tests.console.test_pages import settle, violations
from tests.console.test_talking import expect_conversation, say, session_of
from tests.mcp.conftest import sdk_server
from tests.support.provider import Provider
from tests.support.tool_server import Answer, ToolServer

ANYTHING = {"type": "object"}


def tool_body(name: str, tool_api: ToolServer, **more: Any) -> dict[str, Any]:
    http = {"method": "POST", "url": f"{tool_api.url}/orders"}
    body = {"name": name, "description": "Does it.", "kind": "http", "parameters": ANYTHING}
    return {**body, "http": http, "effect": "read", "approval": "never", **more}


def clerk(api: httpx2.Client, *tools: dict[str, Any], **more: Any) -> str:
    """Make an agent with these tools and a session with it. Returns the session's place."""
    ids = [{"tool_id": api.post("/tools", json=tool).json()["id"]} for tool in tools]
    agent = api.post("/agents", json={"name": "Clerk", "tools": ids, **more}).json()["id"]
    return "#/chat/" + api.post("/sessions", json={"agent_id": agent}).json()["id"]


def call_of(page: Page, name: str) -> Locator:
    return page.get_by_role("article").locator(".call").filter(has_text=name)


def opened(call: Locator) -> Locator:
    call.locator("summary").click()
    return call


def test_call_shows_what_was_asked_what_came_back_and_how_long_it_took(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    tool_api.answer = Answer(body=b'{"status": "sent", "parcels": 2}')
    provider.chat.calls = [("get_order", '{"number": "2041"}')]
    page = open_page(clerk(api, tool_body("get_order", tool_api)))
    say(page, "Where is it?")
    expect_conversation(page, "Where is it?", "How can I help")

    for is_read_back in (False, True):
        call = call_of(page, "get_order")
        expect(call.locator("summary")).to_contain_text('number: "2041"')
        expect(call.locator("summary")).to_contain_text("Done")
        opened(call)
        expect(call.get_by_role("group", name="Arguments")).to_contain_text('"number": "2041"')
        expect(call.get_by_role("group", name="Result")).to_contain_text('"parcels": 2')
        expect(call.locator("summary b")).to_have_text(re.compile(r"\d"), timeout=WAIT_MS)
        if not is_read_back:
            page.reload()
            expect_conversation(page, "Where is it?", "How can I help")


def test_failed_call_says_why_and_the_answer_goes_on(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    tool_api.answer = Answer(status=500, body=b"out of paper", content_type="text/plain")
    provider.chat.calls = [("print", "{}")]
    page = open_page(clerk(api, tool_body("print", tool_api)))
    say(page, "Print it")
    expect_conversation(page, "Print it", "How can I help")

    call = opened(call_of(page, "print"))
    expect(call.locator("summary")).to_contain_text("Failed")
    expect(call.locator(".state code")).to_have_text("tool-failed")


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_approval_is_given_in_the_conversation(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer,
    is_reloaded: bool,
) -> None:  # fmt: skip
    provider.chat.calls = [("refund", '{"amount": 12}')]
    page = open_page(clerk(api, tool_body("refund", tool_api, effect="once", approval="always")))
    say(page, "Give it back")
    wanted = page.get_by_role("region", name="May this be done?")
    expect(wanted.get_by_role("group")).to_contain_text('"amount": 12', timeout=WAIT_MS)
    expect(page.get_by_text("Waits for an action.").first).to_be_visible()
    assert not tool_api.requests
    if is_reloaded:
        page.reload()

    wanted.get_by_role("button", name="Approve").click()

    expect_conversation(page, "Give it back", "How can I help")
    expect(call_of(page, "refund").locator("summary")).to_contain_text("Done")
    expect(wanted).to_have_count(0)
    assert len(tool_api.requests) == 1
    assert page.locator("body").get_by_text("was restarted").count() == 0


def test_declined_call_is_not_done_and_the_model_knows_the_reason(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("refund", "{}")]
    page = open_page(clerk(api, tool_body("refund", tool_api, approval="always")))
    say(page, "Give it back")
    page.get_by_role("button", name="Decline").click()
    reason = page.get_by_role("textbox", name="Reason")
    expect(reason).to_be_focused()
    reason.fill("too much")
    reason.press("Enter")

    expect_conversation(page, "Give it back", "How can I help")
    call = opened(call_of(page, "refund"))
    expect(call.locator("summary")).to_contain_text("Declined")
    expect(call).to_contain_text("too much")
    assert not tool_api.requests
    assert "too much" in str(provider.to("chat")[-1].body["messages"])


def test_inbox_leads_to_what_waits_and_the_conversation_sees_what_was_decided(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("refund", '{"amount": 12}')]
    page = open_page(clerk(api, tool_body("refund", tool_api, approval="always")))
    say(page, "Give it back")
    expect(page.get_by_role("region", name="May this be done?")).to_be_visible(timeout=WAIT_MS)
    link = page.get_by_role("navigation").get_by_role("link", name="Inbox")
    expect(link).to_contain_text("1")
    other = page.context.new_page()
    other.goto(page.url.partition("#")[0] + "#/inbox")
    expect(other.get_by_text("1 call waits")).to_be_visible(timeout=WAIT_MS)
    expect(other.get_by_role("main").get_by_role("link")).to_have_attribute(
        "href", f"#/chat/{session_of(page)}"
    )

    other.get_by_role("button", name="Approve").click()

    expect(other.get_by_text("Nothing waits for you.")).to_be_visible(timeout=WAIT_MS)
    page.bring_to_front()
    expect_conversation(page, "Give it back", "How can I help")
    expect(link).not_to_contain_text("1")


def test_output_of_the_callers_own_tool_is_given_by_hand(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("read_meter", '{"room": 3}')]
    body = tool_body("read_meter", tool_api, kind="client")
    del body["http"]
    page = open_page(clerk(api, body))
    say(page, "What does it show?")
    output = page.get_by_role("textbox", name="Output")
    output.fill('{"kwh": 42}')
    page.get_by_role("button", name="Send output").click()

    expect_conversation(page, "What does it show?", "How can I help")
    expect(opened(call_of(page, "read_meter"))).to_contain_text('"kwh": 42')
    assert '{"kwh":42}' in str(provider.to("chat")[-1].body["messages"])


def test_unknown_outcome_is_told_to_the_agent(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("charge", '{"eur": 5}')]
    broken = {"method": "POST", "url": f"{tool_api.url}/fail/half"}
    page = open_page(clerk(api, tool_body("charge", tool_api, http=broken, effect="once")))
    say(page, "Charge it")
    expect(page.get_by_text("It is not known whether this was done")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("alert").locator("code")).to_have_text("unknown-tool-outcome")
    provider.chat.calls = []

    page.get_by_role("button", name="It was not done").click()

    expect_conversation(page, "Charge it", "charge", "was not done", "How can I help")
    assert "charge(eur: 5) was not done" in str(provider.to("chat")[-1].body["messages"][-1])


def test_question_of_an_mcp_server_is_answered(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, mcp_port: int
) -> None:
    with sdk_server("modern", mcp_port) as mcp:
        made = api.post(
            "/mcp-servers", json={"name": "trial", "url": mcp.url, "approval": "never"}
        ).json()
        api.post(f"/mcp-servers/{made['id']}/tools/refund/accept", json={}).raise_for_status()
        body = {"name": "Clerk", "tools": [{"mcp_server_id": made["id"]}]}
        agent = api.post("/agents", json=body).json()["id"]
        session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
        provider.chat.calls = [("trial__refund", '{"what": "it"}')]
        page = open_page(f"#/chat/{session}")
        say(page, "Tidy up")
        question = page.get_by_role("region", name="A question")
        question.get_by_role("checkbox").check()
        question.get_by_role("button", name="Answer").click()

        expect_conversation(page, "Tidy up", "How can I help")
        expect(call_of(page, "trial__refund").locator("summary")).to_contain_text("Done")


def test_hostile_names_arguments_and_results_of_tools_stay_text(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    tool_api.answer = Answer(body=HOSTILE.encode(), content_type="text/plain")
    provider.chat.calls = [("look", '{"<b>": "<img src=x onerror=alert(1)>"}'), (HOSTILE, "{")]
    page = open_page(clerk(api, tool_body("look", tool_api, approval="always")))
    say(page, "Look")
    wanted = page.get_by_role("region", name="May this be done?")
    expect(wanted).to_contain_text("<img src=x onerror=alert(1)>", timeout=WAIT_MS)
    wanted.get_by_role("button", name="Approve").click()
    expect_conversation(page, "Look", "How can I help")

    for call in page.locator(".call").all():
        opened(call)
    expect(page.locator(".call").first).to_contain_text(HOSTILE[:20])
    assert page.locator("article").locator("img, b[onclick], iframe, script").count() == 0


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_calls_and_actions_are_accessible(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer,
    theme: str, size: tuple[int, int],
) -> None:  # fmt: skip
    schema = {"type": "object", "properties": {"a": ANYTHING}}
    client = tool_body("measure", tool_api, kind="client")
    del client["http"]
    provider.chat.calls = [
        ("get_order", '{"number": "2041"}'), ("refund", '{"amount": 12}'), ("measure", "{}"),
    ]  # fmt: skip
    tools = (tool_body("get_order", tool_api), tool_body("refund", tool_api, approval="always"))
    place = clerk(api, *tools, client)
    page = open_page(place, size=size, color_scheme=theme, bypass_csp=True)
    say(page, "All of it")
    page.get_by_role("region", name="Your code's output is wanted").wait_for()
    for call in page.locator(".call").all():
        opened(call)
    found = {"calls": violations(page)}
    provider.chat.calls, provider.chat.text = [], '{"a": {"b": [1, true, null, "c"]}}'
    typed = clerk(api, output_schema=schema)
    for place, sign in ((typed, ".composer"), ("#/inbox", ".inbox .action >> nth=1")):
        page.evaluate("(place) => { location.hash = place; }", place)
        settle(page)
        page.locator(sign).wait_for()
        if place != "#/inbox":
            say(page, "Say it as JSON")
            page.locator(".tree").wait_for()
        found[place] = violations(page)
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), place
    assert not {place: lines for place, lines in found.items() if lines}

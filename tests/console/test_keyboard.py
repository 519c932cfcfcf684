"""Places of the console without a mouse, and hostile texts in them."""

import re

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import DESKTOP, HOSTILE, PHONE, WAIT_MS, OpenPage
from tests.console.test_pages import settle, violations
from tests.console.test_places import embedding, of_two_versions
from tests.console.test_talking import say
from tests.console.test_tool_calls import clerk, tool_body
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess
from tests.support.tool_server import ToolServer

MOST_STOPS = 60
FOCUSED = """() => {
    const one = document.activeElement;
    const label = one.labels?.[0]?.firstChild?.textContent ?? "";
    const text = one.matches("input, select, textarea") ? label : one.textContent;
    const {outlineStyle, outlineWidth} = getComputedStyle(one);
    const isOutlined = outlineStyle !== "none" && parseInt(outlineWidth) >= 1;
    return {name: (one.getAttribute("aria-label") ?? text).trim(),
            isSeen: isOutlined || one.closest(".composer") !== null};
}"""


def tab_to(page: Page, name: str) -> None:
    """Press Tab until something has this name (or begins with it); every stop must be seen."""
    names: list[str] = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        assert focused["isSeen"], focused
        names.append(focused["name"])
        if focused["name"].startswith(name):
            return
    raise AssertionError((name, names))


def test_tool_is_made_without_a_mouse(
    open_page: OpenPage, api: httpx2.Client, tool_api: ToolServer
) -> None:
    page = open_page("#/tools")
    settle(page)
    tab_to(page, "New tool")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="New tool").wait_for()
    for field, text in (
        ("Name", "get_order"), ("Description", "Looks up."), ("URL", f"{tool_api.url}/orders"),
    ):  # fmt: skip
        tab_to(page, field)
        page.keyboard.type(text)
    tab_to(page, "Approval")
    page.keyboard.press("End")
    tab_to(page, "Make tool")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    tab_to(page, "I have stored it")
    page.keyboard.press("Enter")

    expect(page.locator("h1")).to_have_text("get_order")
    (tool,) = api.get("/tools").json()
    assert (tool["description"], tool["approval"]) == ("Looks up.", "always")


def test_waiting_call_is_declined_without_a_mouse(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("refund", "{}")]
    session = clerk(api, tool_body("refund", tool_api, approval="always")).rpartition("/")[2]
    api.post("/messages/text", json={"session_id": session, "content": "Give it back"})
    page = open_page("#/inbox")
    settle(page)
    tab_to(page, "Decline")
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Reason")).to_be_focused()
    page.keyboard.type("too much")
    page.keyboard.press("Enter")

    expect(page.get_by_text("Nothing waits for you.")).to_be_visible(timeout=WAIT_MS)
    assert not tool_api.requests


def test_versions_are_compared_without_a_mouse(open_page: OpenPage, api: httpx2.Client) -> None:
    agent = of_two_versions(api)
    api.put(f"/agents/{agent}", json={"system_prompt": "Be exact."})
    page = open_page(f"#/agents/{agent}?tab=compare")
    settle(page)
    expect(page.get_by_role("combobox").first.get_by_role("option")).to_have_count(3)
    tab_to(page, "Version on the left")
    page.keyboard.press("End")
    expect(page.get_by_role("region", name="Left: version 1")).to_be_visible()
    tab_to(page, "Message")
    page.keyboard.type("How are you?")
    page.keyboard.press("Enter")

    expect(page.get_by_role("article")).to_have_count(4, timeout=WAIT_MS)
    expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=WAIT_MS)
    assert {turn["agent_version"] for turn in api.get("/turns").json()} == {1, 3}


def test_sessions_are_chosen_and_deleted_without_a_mouse(
    open_page: OpenPage, api: httpx2.Client
) -> None:
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    for number in range(3):
        api.post("/sessions", json={"agent_id": agent, "title": f"Talk {number}"})
    page = open_page("#/sessions")
    settle(page)
    tab_to(page, "Select")
    page.keyboard.press("Enter")
    tab_to(page, "Select Talk 2")
    page.keyboard.press("Space")
    expect(page.get_by_text("1 selected")).to_be_visible()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("checkbox", name="Select Talk 1")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_text("2 selected")).to_be_visible()
    for _ in range(MOST_STOPS):
        page.keyboard.press("Shift+Tab")
        if page.evaluate(FOCUSED)["name"] == "Delete":
            break
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expect(page.get_by_text("2 done.")).to_be_visible()
    assert [one["title"] for one in api.get("/sessions").json()] == ["Talk 0"]


def test_turn_is_read_without_a_mouse(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("get_order", "{}")]
    session = clerk(api, tool_body("get_order", tool_api)).rpartition("/")[2]
    turn = api.post("/messages/text", json={"session_id": session, "content": "Hi"}).json()
    page = open_page(f"#/turns/{turn['turn_id']}")
    settle(page)
    tab_to(page, "get_order")
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="Arguments")).to_be_visible()
    tab_to(page, "Events")
    page.keyboard.press("Enter")

    expect(page.locator(".events li").last).to_contain_text("turn.completed", timeout=WAIT_MS)


def test_hostile_texts_stay_text_where_agents_work(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("look", '{"<b>": "<img src=x onerror=alert(1)>"}')]
    waiting = clerk(api, tool_body("look", tool_api, approval="always", description=HOSTILE))
    session = waiting.rpartition("/")[2]
    agent = api.get(f"/sessions/{session}").json()["agent_id"]
    for changes in ({"name": HOSTILE}, {"system_prompt": HOSTILE}):
        api.put(f"/agents/{agent}", json=changes)
    api.patch(f"/sessions/{session}", json={"title": HOSTILE})
    turn = api.post("/messages/text", json={"session_id": session, "content": HOSTILE}).json()
    provider.chat.calls, provider.chat.text = [], HOSTILE
    page = open_page("#/inbox")
    for place in (
        "#/inbox", f"#/turns/{turn['id']}", f"#/agents/{agent}?tab=tools", "#/sessions",
        f"#/agents/{agent}?tab=versions", f"#/agents/{agent}?tab=compare",
    ):  # fmt: skip
        page.evaluate("(place) => { location.hash = place; }", place)
        settle(page)
        if place == "#/sessions":
            page.get_by_role("button", name="Select").click()
            expect(page.get_by_role("checkbox", name=f"Select {HOSTILE}")).to_be_visible()
        if place.endswith("compare"):
            say(page, HOSTILE)
            expect(page.get_by_role("article")).to_have_count(4, timeout=WAIT_MS)
            expect(page.get_by_role("article").nth(1)).to_contain_text("onerror")
        assert page.locator("img, iframe, script:not([src]):not([type])").count() == 0, place
        assert page.locator("main").get_by_text(re.compile("evil|onerror")).count() > 0, place


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_embedded_chat_is_accessible(
    server: ServerProcess, api: httpx2.Client, provider: Provider, tool_api: ToolServer,
    site: Page, theme: str, size: tuple[int, int],
) -> None:  # fmt: skip
    page = site
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    provider.chat.text = "A long word: " + "x" * 300
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
    token = api.post(f"/sessions/{session}/tokens", json={}).json()["token"]
    tool_api.answer = embedding(server, token)
    page.goto(tool_api.url)
    found = {"closed": violations(page)}
    page.get_by_role("button", name="Chat").click()
    say(page, "Hello")
    expect(page.locator(".answer")).to_contain_text("xxx", timeout=WAIT_MS)
    found["open"] = violations(page)

    assert not {state: lines for state, lines in found.items() if lines}
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    chat = page.get_by_role("dialog", name="Chat").bounding_box()
    assert chat is not None
    assert chat["x"] >= 0
    assert chat["x"] + chat["width"] <= size[0]
    assert chat["y"] >= 0

"""What is done with several conversations at once, with a turn, and on a page of another site."""

import json
import re

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import DESKTOP, HOSTILE, PHONE, RECORDING, WAIT_MS, OpenPage
from tests.console.test_pages import settle, violations
from tests.console.test_talking import expect_conversation, say, stored
from tests.console.test_tool_calls import clerk, tool_body
from tests.support.provider import Messages, Provider
from tests.support.server_process import ServerProcess
from tests.support.tool_server import Answer, ToolServer


def of_two_versions(api: httpx2.Client) -> str:
    agent = api.post("/agents", json={"name": "Ada", "system_prompt": "Be brief."}).json()["id"]
    api.put(f"/agents/{agent}", json={"system_prompt": "Be thorough."})
    return agent


def test_two_versions_answer_the_same_question_side_by_side(
    open_page: OpenPage, api: httpx2.Client, provider: Provider
) -> None:
    def answer(messages: Messages) -> str:
        return f"I was told: {messages[0]['content']}"

    provider.chat.text = answer
    agent = of_two_versions(api)
    page = open_page(f"#/agents/{agent}?tab=compare")
    say(page, "How are you?")

    left, right = (page.get_by_role("region", name=name) for name in ("Left", "Right"))
    expect(left.get_by_role("article").nth(1)).to_contain_text("Be brief.", timeout=WAIT_MS)
    expect(right.get_by_role("article").nth(1)).to_contain_text("Be thorough.", timeout=WAIT_MS)
    say(page, "And now?")
    for side in (left, right):
        expect(side.get_by_role("article")).to_have_count(4, timeout=WAIT_MS)
    turns = api.get("/turns").json()
    assert sorted(turn["agent_version"] for turn in turns) == [1, 1, 2, 2]


def test_several_sessions_are_moved_and_deleted_at_once(
    open_page: OpenPage, api: httpx2.Client
) -> None:
    ada, grace = (api.post("/agents", json={"name": name}).json()["id"] for name in ("A", "Grace"))
    for number in range(4):
        api.post("/sessions", json={"agent_id": ada, "title": f"Talk {number}"})
    page = open_page("#/sessions")
    page.get_by_role("button", name="Select").click()
    page.get_by_role("checkbox", name="Select Talk 0").check()
    page.get_by_role("checkbox", name="Select Talk 1").press("Space")
    expect(page.get_by_text("2 selected")).to_be_visible()
    page.get_by_role("combobox", name="Move to agent").select_option("Grace")
    expect(page.get_by_text("2 done.")).to_be_visible()
    moved = [one["title"] for one in api.get("/sessions").json() if one["agent_id"] == grace]
    assert sorted(moved) == ["Talk 0", "Talk 1"]

    page.get_by_role("button", name="Select").click()
    page.get_by_role("checkbox", name="All that are loaded").check()
    page.get_by_role("checkbox", name="Select Talk 3").uncheck()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("3 done.")).to_be_visible()
    expect(page.get_by_text("1 conversation", exact=True)).to_be_visible()
    assert [one["title"] for one in api.get("/sessions").json()] == ["Talk 3"]


def test_turn_shows_its_steps_calls_and_events(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("get_order", '{"number": "2041"}')]
    session = clerk(api, tool_body("get_order", tool_api)).rpartition("/")[2]
    sent = api.post("/messages/text", json={"session_id": session, "content": "Hi"}).json()
    page = open_page(f"#/turns/{sent['turn_id']}")

    expect(page.locator(".timeline")).to_contain_text("get_order")
    expect(page.locator(".steps")).to_contain_text("Step 1")
    expect(page.locator(".steps")).to_contain_text("Last answer")
    page.get_by_text("Events").click()
    events = page.locator(".events li")
    done = events.filter(has_text="tool_call.completed")
    at_ms = json.loads(done.locator("pre").inner_text(timeout=WAIT_MS))["at_ms"]
    shown = f"{at_ms} ms" if at_ms < 1000 else re.compile(r"^\d+\.\d+ s$")
    expect(done.locator("time")).to_have_text(shown)
    expect(events.last).to_contain_text("turn.completed")


def test_failed_answer_is_tried_again_in_its_place(
    talk_page: Page, api: httpx2.Client, provider: Provider
) -> None:
    provider.fail("status_400", times=None)
    say(talk_page, "Hello")
    expect(talk_page.get_by_text("Failed.")).to_be_visible(timeout=WAIT_MS)
    provider.reset()

    talk_page.get_by_role("button", name="Try again").click()

    expect_conversation(talk_page, "Hello", "How can I help")
    expect(talk_page.get_by_text("Failed.")).to_have_count(0)
    assert stored(api, talk_page) == [("user", "Hello"), ("assistant", provider.chat.text)]


def test_recording_is_played_back(talk_page: Page, api: httpx2.Client) -> None:
    session = talk_page.url.rpartition("/")[2]
    with RECORDING.open("rb") as recording:
        api.post(
            "/messages/voice", data={"session_id": session}, files={"audio": ("x.wav", recording)}
        ).raise_for_status()
    talk_page.reload()
    question = talk_page.get_by_role("article").first
    question.hover()
    with talk_page.expect_response("**/recording") as played:
        question.get_by_role("button", name="Play recording").click()

    assert played.value.headers["content-type"] == "audio/wav"


def embedding(server: ServerProcess, token: str, **data: str) -> Answer:
    policy = (
        f"default-src 'none'; script-src {server.url}; connect-src 'self' {server.url};"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    )
    attributes = "".join(f' data-{name}="{value}"' for name, value in data.items())
    html = (
        '<!doctype html><html lang="en"><title>Shop</title><main><h1>Shop</h1></main>'
        f'<script src="{server.url}/embed.js" data-token="{token}"{attributes}></script>'
    )
    return Answer(body=html.encode(), content_type="text/html", headers={
        "Content-Security-Policy": policy
    })  # fmt: skip


def test_chat_is_embedded_in_a_page_of_another_site(
    site: Page, server: ServerProcess, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    faults: list[str] = []
    site.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
    tokens = f"/sessions/{session}/tokens"
    token = api.post(tokens, json={}).json()["token"]
    tool_api.answer = embedding(server, token)
    tool_api.respond = lambda request: (
        Answer(body=json.dumps(api.post(tokens, json={}).json()).encode())
        if request.target == "/renew"
        else embedding(server, token, renew="/renew")
    )
    provider.chat.text = HOSTILE
    site.goto(tool_api.url)
    site.keyboard.press("Tab")
    site.keyboard.press("Enter")
    chat = site.get_by_role("dialog", name="Chat")
    expect(chat.get_by_role("textbox", name="Message")).to_be_focused()
    site.keyboard.type("Hello <b>there</b>")
    site.keyboard.press("Enter")

    for _ in range(2):
        expect(chat.locator(".said")).to_have_text("Hello <b>there</b>")
        expect(chat.locator(".answer")).to_have_text(HOSTILE)
        assert chat.locator("img, b").count() == 0
        site.reload()
        site.get_by_role("button", name="Chat").click()
    site.keyboard.press("Escape")
    expect(site.get_by_role("button", name="Chat")).to_be_focused()
    assert not faults


@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_comparison_selection_and_steps_are_accessible(
    open_page: OpenPage, api: httpx2.Client, provider: Provider, tool_api: ToolServer,
    size: tuple[int, int], theme: str,
) -> None:  # fmt: skip
    provider.chat.calls = [("get_order", '{"number": "2041"}')]
    session = clerk(api, tool_body("get_order", tool_api)).rpartition("/")[2]
    turn = api.post("/messages/text", json={"session_id": session, "content": "Hi"}).json()
    agent = of_two_versions(api)
    page = open_page("#/sessions", size=size, color_scheme=theme, bypass_csp=True)
    found: dict[str, list[str]] = {}
    places = ("#/sessions", f"#/turns/{turn['turn_id']}", f"#/agents/{agent}?tab=compare")
    for place in places:
        page.evaluate("(place) => { location.hash = place; }", place)
        settle(page)
        if place == "#/sessions":
            page.get_by_role("button", name="Select").click()
            page.get_by_role("checkbox").nth(1).check()
        if "compare" in place:
            say(page, "Hello")
            expect(page.get_by_role("article")).to_have_count(4, timeout=WAIT_MS)
        found[place] = violations(page)
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), place
    assert not {place: lines for place, lines in found.items() if lines}

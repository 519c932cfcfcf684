"""The places of the console: what they show, by keyboard, to screen readers, and to strangers."""

import re
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import DESKTOP, HOSTILE, PHONE, WAIT_MS, OpenPage, npm_package
from tests.console.test_talking import expect_conversation, say
from tests.support.planted_secrets import ADMIN_KEY
from tests.support.provider import Provider

HOSTILE_MARKDOWN = """<script>alert(1)</script> <b onclick="alert(1)">bold</b>
[link](javascript:alert(1)) [other](https://elsewhere.example/x) ![pixel](https://elsewhere.example/p.png)

| a | b |
| --- | --- |
| <iframe src="https://elsewhere.example"></iframe> | `code` |

```html
<script>alert(2)</script>
```
"""
VIEWS = ("", "#/agents", "#/tools", "#/inbox", "#/sessions", "#/usage", "#/keys", "#/system")


@pytest.fixture
def filled(api: httpx2.Client, provider: Provider) -> dict[str, str]:
    """A server with an agent of two versions, a conversation and a key; their ids."""
    provider.chat.text = "# A heading\n\nOne `word`.\n\n- a\n- b\n\n```python\nprint(1)\n```"
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    api.put(f"/agents/{agent}", json={"system_prompt": "You are a very helpful assistant."})
    session = api.post("/sessions", json={"agent_id": agent, "title": "A talk"}).json()["id"]
    sent = api.post("/messages/text", json={"session_id": session, "content": "Hello"}).json()
    api.post("/keys", json={"name": "backend", "scopes": ["usage:read"]})
    return {"agent": agent, "session": session, "turn": sent["turn_id"]}


def settle(page: Page) -> None:
    """Wait until a view is whole: its heading is there and nothing loads."""
    page.locator("h1").first.wait_for()
    expect(page.locator(".loading")).to_have_count(0, timeout=WAIT_MS)


def violations(page: Page) -> list[str]:
    """Return what axe finds, as lines that say where."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(npm_package("axe-core/axe.min.js").read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found: dict[str, Any] = page.evaluate("(tags) => axe.run({runOnly: tags})", tags)
    return [
        f"{rule['id']}: {node['html']}" for rule in found["violations"] for node in rule["nodes"]
    ]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_is_accessible_and_not_wider_than_the_window(
    open_page: OpenPage, filled: dict[str, str], theme: str, size: tuple[int, int]
) -> None:
    npm_package("axe-core/axe.min.js")
    page = open_page(size=size, color_scheme=theme, bypass_csp=True)
    settle(page)
    found: dict[str, list[str]] = {}
    for place in (
        *VIEWS,
        f"#/chat/{filled['session']}",
        f"#/turns/{filled['turn']}",
        f"#/agents/{filled['agent']}",
        f"#/agents/{filled['agent']}?tab=versions",
    ):
        page.evaluate("(place) => { location.hash = place; }", place or "#/")
        settle(page)
        found[place] = violations(page)
        wider = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not wider, place
    assert not {place: lines for place, lines in found.items() if lines}


def test_hostile_names_titles_and_answers_stay_text(
    open_page: OpenPage, api: httpx2.Client, provider: Provider
) -> None:
    provider.chat.text = [HOSTILE_MARKDOWN[i : i + 7] for i in range(0, len(HOSTILE_MARKDOWN), 7)]
    agent = api.post("/agents", json={"name": HOSTILE, "system_prompt": HOSTILE}).json()["id"]
    body = {"agent_id": agent, "title": HOSTILE, "user_id": HOSTILE}
    session = api.post("/sessions", json=body).json()["id"]
    api.post("/keys", json={"name": HOSTILE, "scopes": ["usage:read"]})
    page = open_page(f"#/chat/{session}")
    say(page, HOSTILE)
    expect_conversation(page, "onerror", "<script>alert(1)</script>")

    answer = page.get_by_role("article").nth(1)
    assert answer.locator("img, script, iframe, b[onclick]").count() == 0
    assert answer.get_by_role("link").evaluate_all("links => links.map((one) => one.href)") == [
        "https://elsewhere.example/x",
        "https://elsewhere.example/p.png",
    ]
    rel = answer.get_by_role("link").first.get_attribute("rel")
    assert rel is not None
    assert {"noopener", "noreferrer"} <= set(rel.split())
    for place in (*VIEWS, f"#/agents/{agent}", f"#/agents/{agent}?tab=versions"):
        page.evaluate("(place) => { location.hash = place; }", place or "#/")
        settle(page)
        assert page.locator("img, iframe").count() == 0, place
    page.evaluate("location.hash = '#/sessions'")
    expect(page.locator(".row strong").first).to_have_text(HOSTILE)


def test_console_is_used_without_a_mouse(open_page: OpenPage, filled: dict[str, str]) -> None:
    page = open_page()
    settle(page)
    page.locator("h1").focus()
    for keys, title in (("gs", "Sessions"), ("gu", "Usage"), ("gy", "System"), ("ga", "Agents")):
        for key in keys:
            page.keyboard.press(key)
        expect(page.locator("h1")).to_have_text(title)
        expect(page.locator("h1")).to_be_focused()

    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.type("a talk")
    expect(page.get_by_role("option", name="A talk")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/#/chat/{filled['session']}")
    page.locator("h1").focus()
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Single letters are commands").press("Space")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.locator("h1").focus()
    page.keyboard.press("n")
    assert page.url.endswith(filled["session"])

    seen: set[str] = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label')"
                " ?? document.activeElement.textContent"
            )
        )
    assert {"Message", "Speak", "Hands-free", "Agents", "More"} <= {name.strip() for name in seen}


def test_sessions_are_searched_and_the_place_can_be_shared(
    open_page: OpenPage, api: httpx2.Client, filled: dict[str, str]
) -> None:
    body = {"agent_id": filled["agent"], "messages": [{"role": "user", "content": "an orchid"}]}
    api.post("/sessions", json=body)
    page = open_page("#/sessions")
    rows = page.get_by_role("main").get_by_role("listitem")
    expect(rows).to_have_count(2)
    expect(page.get_by_text("2 conversations")).to_be_visible()

    page.get_by_role("searchbox").fill("orchid")

    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("an orchid")
    assert page.url.endswith("#/sessions?q=orchid")
    page.get_by_role("searchbox").fill("nobody said this")
    expect(page.get_by_text("Nothing says")).to_be_visible()


def test_edit_is_kept_saved_compared_and_restored(
    open_page: OpenPage, api: httpx2.Client, filled: dict[str, str]
) -> None:
    page = open_page(f"#/agents/{filled['agent']}")
    prompt = page.get_by_role("textbox", name="Instructions")
    prompt.fill("You are a very careful assistant.")
    page.reload()
    expect(prompt).to_have_value("You are a very careful assistant.")
    api.put(f"/agents/{filled['agent']}", json={"name": "Grace"})

    page.get_by_role("button", name="Save version 3").click()
    expect(page.get_by_text("Somebody else has saved this agent")).to_be_visible()
    page.get_by_role("button", name="Save version 4").click()

    expect(page.get_by_text("Saved as version 4.")).to_be_visible()
    agent = api.get(f"/agents/{filled['agent']}").json()
    assert (agent["name"], agent["system_prompt"]) == ("Grace", "You are a very careful assistant.")
    page.get_by_role("button", name="Versions").click()
    page.get_by_role("button", name=re.compile("^v2")).click()
    expect(page.locator("ins").filter(has_text="careful")).to_be_visible()
    page.get_by_role("button", name="Restore version 2").click()
    expect(page.get_by_text("Version 2 restored as version 5.")).to_be_visible()


def test_trial_answers_beside_the_editor(
    open_page: OpenPage, filled: dict[str, str], provider: Provider
) -> None:
    provider.chat.text = "As you wish."
    page = open_page(f"#/agents/{filled['agent']}")
    settle(page)
    say(page, "Try this")

    expect_conversation(page, "Try this", "As you wish.")
    assert page.url.endswith(f"#/agents/{filled['agent']}")


def test_key_is_shown_once_and_works(
    open_page: OpenPage, api: httpx2.Client, filled: dict[str, str]
) -> None:
    assert filled
    page = open_page("#/keys")
    page.get_by_role("button", name="New key").click()
    page.get_by_role("textbox", name="Name").fill("site")
    page.get_by_role("button", name="Make key").click()

    dialog = page.get_by_role("dialog", name="site")
    key = dialog.locator(".secret code").inner_text()
    assert api.get("/me", headers={"Authorization": f"Bearer {key}"}).json()["kind"] == "key"
    expect(dialog.get_by_text("curl -s").first).to_be_visible()
    dialog.get_by_role("button", name="I have stored it").click()
    expect(page.get_by_text(key)).to_have_count(0)


def test_stranger_signs_in_and_out(open_page: OpenPage, api: httpx2.Client) -> None:
    api.post("/agents", json={"name": "Ada"})
    stranger = {"X-Forwarded-For": "203.0.113.9"}
    page = open_page(extra_http_headers=stranger)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_label("API key").fill("ap_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This key is not known here.")

    page.get_by_label("API key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Sign in").click()

    expect(page.get_by_role("heading", name="Who would you like to talk to?")).to_be_visible()
    say(page, "Hello")
    expect_conversation(page, "Hello", "How can I help")
    assert "agent_platform" not in page.evaluate("document.cookie")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_theme_is_kept_and_there_before_the_first_paint(open_page: OpenPage) -> None:
    page = open_page(color_scheme="light")
    page.get_by_role("button", name=re.compile("^Theme")).click()
    page.get_by_role("button", name=re.compile("^Theme")).click()
    page.reload()

    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(21, 21, 19)"

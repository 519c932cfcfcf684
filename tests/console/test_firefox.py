"""The flows of the console in Debian's Firefox, which has nothing of Chromium's."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx2
import pytest

from tests.console.conftest import DESKTOP, HOSTILE, PHONE
from tests.console.test_talking import WORDS
from tests.console.test_tool_calls import clerk, tool_body
from tests.support.firefox import Firefox, FirefoxPage, launched
from tests.support.planted_secrets import ADMIN_KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess
from tests.support.tool_server import ToolServer

OpenFirefox = Callable[..., FirefoxPage]
FOREIGN_NAME = "agents.example"
"""Which Firefox finds on this machine: to the server somebody who asks for it is a stranger."""


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    folder = tmp_path_factory.mktemp("firefox")
    with launched(folder, {"network.dns.localDomains": FOREIGN_NAME}) as firefox:
        yield firefox


@pytest.fixture
def open_firefox(
    server: ServerProcess, firefox: Firefox, api: httpx2.Client
) -> Iterator[OpenFirefox]:
    """Open a page of the console; at the end nothing may have failed, or been asked elsewhere."""
    del api  # it empties the server
    pages: list[FirefoxPage] = []
    with ExitStack() as stack:

        def open_firefox(
            place: str = "", size: tuple[int, int] = DESKTOP, host: str = "127.0.0.1"
        ) -> FirefoxPage:
            url = f"http://{host}:{server.port}/{place}"
            page = stack.enter_context(firefox.page(url, size))
            pages.append(page)
            return page

        yield open_firefox
        own = (server.url, f"http://{FOREIGN_NAME}:{server.port}", "data:", "blob:")
        for page in pages:
            page.evaluate("document.title")  # all events before it have come
            assert page.requests
            assert [url for url in page.requests if not url.startswith(own)] == []
            assert page.errors == []


def say(page: FirefoxPage, words: str) -> None:
    page.click("textbox", "Message")
    page.type(words)
    page.press("Enter")


def articles(page: FirefoxPage) -> list[str]:
    texts: list[str] = page.evaluate(
        "[...document.querySelectorAll('article')].map((each) => each.innerText)"
    )
    return texts


def expect_conversation(page: FirefoxPage, *contents: str) -> None:
    """Wait until the page shows these messages, each once, and none that grows."""
    words = json.dumps(contents)
    page.wait_for(
        "((all) => all.length === $.length && all.every((each, at) =>"
        " each.innerText.includes($[at])))([...document.querySelectorAll('article')])"
        " && !document.querySelector('[aria-busy=true]')".replace("$", words)
    )


def test_first_words_make_an_agent_and_the_answer_grows(
    open_firefox: OpenFirefox, api: httpx2.Client, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.03
    page = open_firefox()
    page.wait_for_text("Say something.", "h1")

    say(page, "Count")

    page.wait_for_text("word5 ")
    assert "word59" not in articles(page)[-1]
    expect_conversation(page, "Count", "word59")
    page.wait_for_text("tokens", ".receipt")
    (agent,) = api.get("/agents").json()
    assert agent["name"] == "Ada"


def test_stranger_signs_in_and_out(open_firefox: OpenFirefox, api: httpx2.Client) -> None:
    api.post("/agents", json={"name": "Ada"})
    page = open_firefox(host=FOREIGN_NAME)
    page.wait_for_text("Sign in", "h1")
    page.wait_for("document.activeElement.matches('input[type=password]')")
    page.type(ADMIN_KEY)
    page.press("Enter")

    page.wait_for_text("Who would you like to talk to?", "h1")
    assert page.evaluate("document.cookie") == ""
    say(page, "Hello")
    expect_conversation(page, "Hello", "How can I help")
    page.click("button", "Sign out")
    page.wait_for_text("Sign in", "h1")
    # What was refused before is an answer of the server, and no fault of the page.
    page.errors[:] = [line for line in page.errors if "401" not in line]


def test_stop_keeps_what_was_written(
    open_firefox: OpenFirefox, api: httpx2.Client, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.1
    page = open_firefox()
    say(page, "Count")
    page.wait_for_text("word3 ")
    page.click("button", "Stop")

    page.wait_for_text("Stopped", "article")
    expect_conversation(page, "Count", "word3")
    (session,) = api.get("/sessions").json()
    answer = api.get(f"/sessions/{session['id']}").json()["messages"][1]
    assert answer["status"] == "cancelled"
    assert answer["content"].startswith("word0 word1 word2 word3")
    assert "word59" not in answer["content"]


def test_answer_is_whole_after_a_reload_in_its_middle(
    open_firefox: OpenFirefox, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.03
    page = open_firefox()
    say(page, "Count")
    page.wait_for_text("word5 ")
    page.reload()

    expect_conversation(page, "Count", WORDS)
    assert len(provider.to("chat")) == 1


def test_agent_is_made_and_changed(open_firefox: OpenFirefox, api: httpx2.Client) -> None:
    page = open_firefox("#/agents")
    page.click("button", "New agent")
    page.wait_for_text("Save version 2")
    page.click(
        "textbox",
        "Instructions What the agent is told before every conversation. Do not put secrets here.",
    )
    page.press("Control", "a")
    page.type("Be brief.")
    page.press("Control", "s")

    page.wait_for_text("Saved as version 2.")
    (agent,) = api.get("/agents").json()
    assert (agent["version"], agent["system_prompt"]) == (2, "Be brief.")


def test_history_is_found_by_its_words(open_firefox: OpenFirefox, api: httpx2.Client) -> None:
    agent = api.post("/agents", json={"name": HOSTILE}).json()["id"]
    for words in ("an orchid", "a cactus"):
        lines = [{"role": "user", "content": words}, {"role": "assistant", "content": HOSTILE}]
        api.post("/sessions", json={"agent_id": agent, "messages": lines, "title": words})
    page = open_firefox("#/sessions")
    page.wait_for("document.querySelectorAll('.virtual li').length === 2")
    page.press("/")
    page.type("orchid")
    page.wait_for("document.querySelectorAll('.virtual li').length === 1")
    page.press("Tab")
    page.press("Tab")
    page.press("Tab")
    page.wait_for("document.activeElement.closest('main')")
    page.click(
        "link",
        page.evaluate("document.querySelector('.virtual a').innerText.replaceAll('\\n', ' ')"),
    )

    expect_conversation(page, "an orchid", HOSTILE[:20])
    assert page.evaluate("document.querySelectorAll('article img, article b').length") == 0
    assert page.evaluate("location.hash").startswith("#/chat/")


def test_action_is_approved(
    open_firefox: OpenFirefox, api: httpx2.Client, provider: Provider, tool_api: ToolServer
) -> None:
    provider.chat.calls = [("refund", '{"amount": 12}')]
    place = clerk(api, tool_body("refund", tool_api, effect="once", approval="always"))
    page = open_firefox(place)
    say(page, "Give it back")
    page.wait_for_text("May this be done?")
    page.wait_for_text('"amount": 12', "[role=group]")
    assert not tool_api.requests
    page.click("button", "Approve")

    expect_conversation(page, "Give it back", "How can I help")
    page.wait_for_text("Done", ".call")
    assert len(tool_api.requests) == 1


def test_keys_lead_everywhere_and_the_focus_is_seen(
    open_firefox: OpenFirefox, api: httpx2.Client
) -> None:
    api.post("/agents", json={"name": "Ada"})
    page = open_firefox("#/system")
    page.wait_for_text("System", "h1")
    for keys, title in (("gs", "Sessions"), ("gu", "Usage"), ("gi", "Inbox"), ("ga", "Agents")):
        page.type(keys)
        page.wait_for_text(title, "h1")
        page.wait_for("document.activeElement.matches('h1')")
    page.press("Control", "k")
    page.wait_for("document.activeElement.matches('[role=combobox]')")
    page.type("usage")
    page.press("Enter")
    page.wait_for_text("Usage", "h1")
    page.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "2px"


def test_nothing_is_wider_than_a_phone(open_firefox: OpenFirefox, api: httpx2.Client) -> None:
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
    page = open_firefox(size=PHONE)
    for place in (
        "", "agents", f"agents/{agent}", f"agents/{agent}?tab=compare", "tools", "inbox",
        "sessions", "usage", "keys", "system", f"chat/{session}",
    ):  # fmt: skip
        page.evaluate(f"location.hash = '#/{place}'")
        page.wait_for("document.querySelector('h1') && !document.querySelector('.loading')")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == page.evaluate("innerWidth"), place

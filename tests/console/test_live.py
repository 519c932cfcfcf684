"""A live conversation on the page: what was heard is stored, also behind a killed server."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Playwright, WebSocket, expect

from tests.console.conftest import DESKTOP, PHONE, WAIT_MS, OpenPage
from tests.console.live_sound import (
    LOUDSPEAKER,
    heard_seconds,
    latency_seconds,
    microphone,
    speaking_browser,
)
from tests.console.test_pages import violations
from tests.console.test_talking import REFUSED_WITH, session_of, stored
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

HEARD = "What is the weather like today?"
LONG = " ".join(f"This is sentence number {number} of many." for number in range(1, 40))
MS_PER_CHARACTER = 50
"""Of the provider's voice."""
QUESTION, INTERRUPTION = "anna_01", "mike_02"
ANSWER_HEARD_S = 6.0
"""Between the end of the question and the interruption: of it the silence that ends a turn, and
what transcriber, model and voice take."""


class Frames:
    """What the page sends and receives over its lines, in their order."""

    def __init__(self, page: Page) -> None:
        self.sent: list[dict[str, Any]] = []
        self.received: list[dict[str, Any]] = []
        page.on("websocket", self._watch)

    def _watch(self, line: WebSocket) -> None:
        line.on("framesent", lambda frame: self.sent.append(json.loads(frame)))
        line.on("framereceived", lambda frame: self.received.append(json.loads(frame)))

    def sent_of(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.sent if frame["type"] == kind]


@pytest.fixture
def warm_api(api: httpx2.Client) -> httpx2.Client:
    """A client of a server that has heard somebody already: its worker for sound runs."""
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
    recording = (Path(__file__).parents[1] / "audio" / "anna_01.wav").read_bytes()
    files = {"audio": ("a.wav", recording, "audio/wav")}
    answered = api.post("/messages/voice", data={"session_id": session}, files=files)
    assert answered.status_code == 200, answered.text
    api.delete(f"/sessions/{session}")
    return api


def live_page(browser: Browser, server: ServerProcess, **options: Any) -> Page:
    """Open the first page, with an ear at its loudspeaker."""
    context = browser.new_context(**options)
    context.set_default_timeout(WAIT_MS)
    context.add_init_script(LOUDSPEAKER)
    page = context.new_page()
    page.goto(server.url)
    return page


def go_live(page: Page) -> None:
    page.get_by_role("button", name="Live", exact=True).click()
    page.get_by_role("button", name="End live conversation").wait_for(timeout=WAIT_MS)


def test_what_was_heard_of_an_interrupted_answer_is_what_is_stored(
    playwright: Playwright,
    server: ServerProcess,
    warm_api: httpx2.Client,
    provider: Provider,
    tmp_path: Path,
) -> None:
    provider.chat.text = LONG
    recording = microphone(tmp_path / "m.wav", [1.0, QUESTION, ANSWER_HEARD_S, INTERRUPTION, 30.0])
    faults: list[str] = []
    with speaking_browser(playwright, recording) as browser:
        page = live_page(browser, server)
        page.on("pageerror", lambda error: faults.append(str(error)))
        frames = Frames(page)
        go_live(page)
        captions = page.get_by_role("log", name="What was said")
        expect(captions.get_by_text(HEARD)).to_have_count(1, timeout=WAIT_MS)
        expect(captions.locator("[data-sounds=true]")).to_contain_text("This is", timeout=WAIT_MS)
        provider.chat.text = "Yes?"
        expect(page.get_by_text("Hearing you")).to_be_visible(timeout=WAIT_MS)
        cut = captions.locator("article.answer").first
        expect(cut.locator("s.unheard")).to_be_visible(timeout=WAIT_MS)
        expect(captions.get_by_text("Yes?")).to_be_visible(timeout=WAIT_MS)
        (truncation,) = frames.sent_of("conversation.item.truncate")
        shown = cut.locator("p > span").first.inner_text()
        struck = cut.locator("s").inner_text()
        page.get_by_role("button", name="End live conversation").click()
        expect(page.locator("article.answer .unheard")).to_be_visible(timeout=WAIT_MS)
        session = session_of(page)

    history = warm_api.get(f"/sessions/{session}").json()["messages"]
    heard = history[1]["heard_content"]
    assert [message["content"] for message in history[::2]] == [HEARD, HEARD]
    assert LONG.startswith(heard)
    assert shown == heard
    assert LONG.startswith(f"{heard} {struck}")
    assert abs(truncation["audio_end_ms"] / MS_PER_CHARACTER - len(heard)) < 12
    assert not faults


def test_what_was_heard_is_what_left_the_loudspeaker(
    playwright: Playwright,
    server: ServerProcess,
    warm_api: httpx2.Client,
    provider: Provider,
    tmp_path: Path,
) -> None:
    provider.chat.text = LONG
    recording = microphone(tmp_path / "m.wav", [1.0, QUESTION, 60.0])
    with speaking_browser(playwright, recording) as browser:
        page = live_page(browser, server)
        frames = Frames(page)
        go_live(page)
        page.wait_for_function("() => window.heardSamples > 2 * window.heardRate", timeout=WAIT_MS)
        page.get_by_role("button", name="Stop the answer").click()
        expect(page.locator("s.unheard")).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_text("Listening")).to_be_visible(timeout=WAIT_MS)
        seconds, latency = heard_seconds(page), latency_seconds(page)
        (truncation,) = frames.sent_of("conversation.item.truncate")
        page.get_by_role("button", name="End live conversation").click()
        expect(page.locator("article.answer .unheard")).to_be_visible(timeout=WAIT_MS)
        history = warm_api.get(f"/sessions/{session_of(page)}").json()["messages"]

    # The sine of the provider's voice passes zero: a few of its samples count as silence.
    assert seconds - latency - 0.5 < truncation["audio_end_ms"] / 1000 < seconds + 0.1
    assert LONG.startswith(history[1]["heard_content"])
    assert 30 < len(history[1]["heard_content"]) < len(LONG) / 4


def test_line_is_taken_up_again_behind_a_killed_server(
    playwright: Playwright, provider: Provider, tmp_path: Path
) -> None:
    provider.reset()
    provider.chat.text, provider.chat.first_byte_delay_seconds = "One answer.", 60
    recording = microphone(tmp_path / "m.wav", [1.0, QUESTION, 8.0])
    settings = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": provider.base_url}
    with (
        ServerProcess(tmp_path, **settings) as server,
        speaking_browser(playwright, recording, loops=True) as browser,
    ):
        page = live_page(browser, server)
        frames = Frames(page)
        go_live(page)
        answers = page.get_by_role("log", name="What was said").locator("article.answer")
        expect(page.get_by_text("Thinking…")).to_be_visible(timeout=WAIT_MS)
        assert provider.wait_until(lambda: len(provider.to("chat")) == 1)
        server.kill()
        expect(page.locator(".live-state")).to_contain_text("Connection lost", timeout=WAIT_MS)
        provider.chat.first_byte_delay_seconds = 0
        server.start()
        expect(answers.first).to_have_text("One answer.", timeout=2 * WAIT_MS)
        provider.chat.text = "Another answer."
        expect(answers.filter(has_text="Another answer.").first).to_be_visible(timeout=WAIT_MS)
        page.get_by_role("button", name="End live conversation").click()
        page.get_by_role("textbox", name="Message").wait_for()
        with server.client() as api:
            history = stored(api, page)

    assert history[:2] == [("user", HEARD), ("assistant", "One answer.")]
    assert ("assistant", "Another answer.") in history
    assert len([each for each in history if each[1] == "One answer."]) <= len(history) // 2
    assert [frame["type"] for frame in frames.received].count("session.created") == 2


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_live_conversation_is_accessible_and_not_wider_than_the_window(
    open_page: OpenPage,
    warm_api: httpx2.Client,
    provider: Provider,
    theme: str,
    size: tuple[int, int],
) -> None:
    provider.chat.text = LONG
    page = open_page(size=size, color_scheme=theme, bypass_csp=True)
    go_live(page)
    expect(page.get_by_text("Ada is speaking")).to_be_visible(timeout=WAIT_MS)
    found = violations(page)
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator("s.unheard")).to_be_visible(timeout=WAIT_MS)

    found += violations(page)
    assert not found
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert warm_api.get("/sessions").json()


def test_microphone_is_turned_off_by_a_key_and_nothing_is_heard(
    playwright: Playwright, server: ServerProcess, warm_api: httpx2.Client, tmp_path: Path
) -> None:
    recording = microphone(tmp_path / "m.wav", [4.0, QUESTION, 4.0])
    with speaking_browser(playwright, recording, loops=True) as browser:
        page = live_page(browser, server)
        frames = Frames(page)
        go_live(page)
        page.keyboard.press("m")
        expect(page.get_by_text("Microphone off").first).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_role("status").filter(has_text="Microphone off")).to_have_count(1)
        place = len(frames.sent)
        page.wait_for_function("() => new Promise((done) => setTimeout(() => done(true), 12_000))")
        silent = frames.sent[place + 50 :]
        started = [f for f in frames.received if f["type"].endswith("speech_started")]
        page.keyboard.press("m")
        expect(page.get_by_text("Hearing you")).to_be_visible(timeout=WAIT_MS)
        page.get_by_role("button", name="End live conversation").focus()
        page.keyboard.press("Enter")
        page.get_by_role("textbox", name="Message").wait_for()

    assert len(silent) > 200
    assert {frame["audio"].strip("A=") for frame in silent} == {""}
    assert not started
    assert warm_api.get("/sessions").json()


def test_live_conversation_that_cannot_begin_says_why(open_page: OpenPage) -> None:
    page = open_page()
    page.evaluate(f"() => {{ {REFUSED_WITH.format('NotAllowedError')} }}")
    page.get_by_role("button", name="Live", exact=True).click()
    expect(page.get_by_text("did not allow the microphone")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_visible()

    page.reload()
    page.evaluate(
        "() => { window.WebSocket = class { close() {}"
        " constructor() { setTimeout(() => this.onclose({code: 1006})); } }; }"
    )
    page.get_by_role("button", name="Live", exact=True).click()
    expect(page.get_by_text("could not be opened")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_visible()

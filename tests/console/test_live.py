"""A live conversation on the page: what is heard is what is stored, over interruptions and a killed server."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Playwright, WebSocket, expect

from tests.console.conftest import DESKTOP, PHONE, WAIT_MS
from tests.console.live_sound import LOUDSPEAKER, heard_seconds, microphone, speaking_browser
from tests.console.test_pages import violations
from tests.console.test_talking import RATE, session_of, stored
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
    playwright: Playwright, server: ServerProcess, warm_api: httpx2.Client, provider: Provider, tmp_path: Path
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
        page.screenshot(path="/tmp/liveshots/cut.png")
        shown = cut.locator("p").evaluate("(line) => line.firstChild.data")
        struck = cut.locator("s").inner_text()
        page.get_by_role("button", name="End live conversation").click()
        expect(page.locator("article.answer .unheard")).to_be_visible(timeout=WAIT_MS)
        session = session_of(page)

    history = warm_api.get(f"/sessions/{session}").json()["messages"]
    heard = history[1]["heard_content"]
    assert [message["content"] for message in history[::2]] == [HEARD, HEARD]
    assert LONG.startswith(heard)
    assert shown == heard
    assert LONG.startswith(heard + struck)
    assert abs(truncation["audio_end_ms"] / MS_PER_CHARACTER - len(heard)) < 12
    assert not faults


def test_what_was_heard_is_what_left_the_loudspeaker(
    playwright: Playwright, server: ServerProcess, warm_api: httpx2.Client, provider: Provider, tmp_path: Path
) -> None:
    provider.chat.text = LONG
    recording = microphone(tmp_path / "m.wav", [1.0, QUESTION, 60.0])
    with speaking_browser(playwright, recording) as browser:
        page = live_page(browser, server)
        frames = Frames(page)
        go_live(page)
        page.wait_for_function("() => window.heardSamples > 2 * window.heardRate", timeout=WAIT_MS)
        page.screenshot(path="/tmp/liveshots/speaking.png")
        page.get_by_role("button", name="Stop the answer").click()
        expect(page.locator("s.unheard")).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_text("Listening")).to_be_visible(timeout=WAIT_MS)
        seconds = heard_seconds(page)
        (truncation,) = frames.sent_of("conversation.item.truncate")
        page.get_by_role("button", name="End live conversation").click()
        expect(page.locator("article.answer .unheard")).to_be_visible(timeout=WAIT_MS)
        history = warm_api.get(f"/sessions/{session_of(page)}").json()["messages"]

    # The sine of the provider's voice passes zero: a few of its samples count as silence.
    assert abs(truncation["audio_end_ms"] / 1000 - seconds) < 0.3
    assert LONG.startswith(history[1]["heard_content"])
    assert 30 < len(history[1]["heard_content"]) < len(LONG) / 4

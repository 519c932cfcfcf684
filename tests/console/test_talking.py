"""Talking on the page: nothing is lost or doubled, whatever happens to the line or the server."""

import base64
import io
import re
import wave
from pathlib import Path

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Page, Playwright, expect

from tests.console.conftest import HOSTILE, PAGE_UNITS, RECORDING, WAIT_MS, OpenPage, launched
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

WORDS = " ".join(f"word{number}" for number in range(60))
RATE = 16_000
REFUSED_WITH = """navigator.mediaDevices.getUserMedia =
    () => Promise.reject(new DOMException("", "{}"))"""


def say(page: Page, words: str) -> None:
    field = page.get_by_role("textbox", name="Message", exact=True)
    field.fill(words)
    field.press("Enter")


def session_of(page: Page) -> str:
    page.wait_for_url("**/#/chat/*")
    return page.url.rpartition("/")[2]


def stored(api: httpx2.Client, page: Page) -> list[tuple[str, str]]:
    history = api.get(f"/sessions/{session_of(page)}").json()["messages"]
    return [(message["role"], message["content"]) for message in history]


def expect_conversation(page: Page, *contents: str) -> None:
    """Wait until the page shows these messages, each once."""
    articles = page.get_by_role("article")
    expect(articles).to_have_count(len(contents), timeout=WAIT_MS)
    for number, content in enumerate(contents):
        expect(articles.nth(number)).to_contain_text(content, timeout=WAIT_MS)
    expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=WAIT_MS)


def test_first_minute_takes_one_click(
    open_page: OpenPage, api: httpx2.Client, provider: Provider
) -> None:
    page = open_page()
    expect(page.get_by_role("heading", level=1)).to_have_text("Say something.")

    page.get_by_role("button", name="What can you do?").click()

    expect_conversation(page, "What can you do?", "How can I help you today?")
    receipt = page.get_by_role("button", name="Details of this turn")
    expect(receipt.filter(has_text="tokens")).to_contain_text("$")
    assert stored(api, page) == [("user", "What can you do?"), ("assistant", provider.chat.text)]
    (agent,) = api.get("/agents").json()
    assert agent["name"] == "Ada"
    expect(page).to_have_title(re.compile("What can you do"))


def test_reload_in_mid_answer_loses_nothing(
    talk_page: Page, api: httpx2.Client, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.03
    say(talk_page, "Count")
    expect(talk_page.get_by_text("word5 ")).to_be_visible()

    talk_page.reload()

    expect_conversation(talk_page, "Count", WORDS)
    assert stored(api, talk_page) == [("user", "Count"), ("assistant", WORDS)]


def test_cut_line_is_taken_up_again_and_what_was_said_meanwhile_arrives_once(
    talk_page: Page, api: httpx2.Client, provider: Provider
) -> None:
    talk_page.context.set_offline(True)
    say(talk_page, "Are you there?")
    expect(talk_page.get_by_text("Not sent yet")).to_be_visible()
    assert stored(api, talk_page) == []

    talk_page.context.set_offline(False)

    expect_conversation(talk_page, "Are you there?", "How can I help you today?")
    assert stored(api, talk_page)[0] == ("user", "Are you there?")
    assert len(stored(api, talk_page)) == 2
    assert len(provider.to("chat")) == 1


def test_killed_server_answers_anew_and_once(
    playwright: Playwright, provider: Provider, tmp_path: Path
) -> None:
    provider.reset()
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.05
    settings = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": provider.base_url}
    with ServerProcess(tmp_path, **settings) as server, launched(playwright) as browser:
        page = browser.new_page()
        page.goto(server.url)
        say(page, "Count")
        expect(page.get_by_text("word10 ")).to_be_visible(timeout=WAIT_MS)
        server.kill()
        expect(page.get_by_text("Connection lost")).to_be_visible(timeout=WAIT_MS)
        provider.chat.token_delay_seconds = 0
        server.start()
        expect_conversation(page, "Count", WORDS)
        with server.client() as api:
            assert stored(api, page) == [("user", "Count"), ("assistant", WORDS)]


def test_next_message_waits_and_stop_keeps_what_was_written(
    talk_page: Page, api: httpx2.Client, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.1
    say(talk_page, "Count")
    expect(talk_page.get_by_text("word3 ")).to_be_visible()
    say(talk_page, "And then?")
    expect(talk_page.get_by_text("Next:")).to_be_visible()
    provider.chat.text, provider.chat.token_delay_seconds = "Nothing.", 0

    talk_page.get_by_role("button", name="Stop").click()

    expect_conversation(talk_page, "Count", "word3", "And then?", "Nothing.")
    expect(talk_page.get_by_text("Stopped")).to_be_visible()
    assert [content for _, content in stored(api, talk_page)][2:] == ["And then?", "Nothing."]


def test_impatient_clicks_send_once(
    open_page: OpenPage, api: httpx2.Client, provider: Provider
) -> None:
    page = open_page()
    page.get_by_role("textbox", name="Message").fill("Only once")
    page.get_by_role("button", name="Send").dblclick()

    expect_conversation(page, "Only once", "How can I help")
    assert len(api.get("/agents").json()) == len(api.get("/sessions").json()) == 1
    assert len(provider.to("chat")) == 1


def test_menu_renames_exports_and_deletes_and_an_answer_is_asked_for_again(
    talk_page: Page, api: httpx2.Client, provider: Provider
) -> None:
    say(talk_page, "first")
    expect_conversation(talk_page, "first", "How can I help")
    before = session_of(talk_page)
    talk_page.get_by_role("button", name="More").click()
    talk_page.get_by_role("menuitem", name="Rename").click()
    talk_page.get_by_role("textbox", name="Title").fill("Orchids")
    talk_page.keyboard.press("Enter")
    expect(talk_page.get_by_role("heading", level=1)).to_have_text("Orchids")
    talk_page.get_by_role("button", name="More").click()
    with talk_page.expect_download() as download:
        talk_page.get_by_role("menuitem", name="Export as JSON").click()
    assert download.value.suggested_filename.endswith(".json")

    provider.chat.text = "Another answer."
    talk_page.get_by_role("button", name="Answer again").click()
    expect_conversation(talk_page, "first", "Another answer.")
    assert session_of(talk_page) != before
    talk_page.get_by_role("button", name="More").click()
    talk_page.get_by_role("menuitem", name="Delete for good").click()
    talk_page.get_by_role("dialog").get_by_role("button", name="Delete for good").click()
    expect(talk_page.get_by_role("heading", level=1)).to_have_text("Who would you like to talk to?")
    assert [session["id"] for session in api.get("/sessions").json()] == [before]


def test_draft_and_input_method_survive(talk_page: Page, api: httpx2.Client) -> None:
    field = talk_page.get_by_role("textbox", name="Message", exact=True)
    field.fill("half a thought")
    field.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    talk_page.reload()

    expect(talk_page.get_by_role("textbox", name="Message", exact=True)).to_have_value(
        "half a thought"
    )
    assert stored(api, talk_page) == []


def test_edit_is_a_branch_and_the_old_conversation_stays(
    talk_page: Page, api: httpx2.Client
) -> None:
    say(talk_page, "first")
    expect_conversation(talk_page, "first", "How can I help")
    before = session_of(talk_page)
    talk_page.get_by_role("article").first.hover()
    talk_page.get_by_role("button", name="Edit and send again").click()
    talk_page.get_by_role("textbox", name="Edit and send again").fill("second")
    talk_page.get_by_role("button", name="Send as a new branch").click()

    expect_conversation(talk_page, "second", "How can I help")
    assert session_of(talk_page) != before
    old = api.get(f"/sessions/{before}").json()["messages"]
    assert [message["content"] for message in old][:1] == ["first"]


def test_second_tab_shows_the_turn_that_runs_in_the_first(
    talk_page: Page, server: ServerProcess, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.1
    other = talk_page.context.new_page()
    other.goto(f"{server.url}/#/chat/{session_of(talk_page)}")
    expect(other.get_by_text("No messages yet.")).to_be_visible(timeout=WAIT_MS)
    say(talk_page, "from the first tab")

    expect(other.get_by_text("word3 ")).to_be_visible(timeout=WAIT_MS)
    expect(other.locator("[aria-busy=true]")).to_have_count(1)
    expect(other.get_by_role("heading", level=1)).to_have_text("from the first tab")
    other.get_by_role("button", name="Stop").click()
    for tab in (talk_page, other):
        expect_conversation(tab, "from the first tab", "word3")
        expect(tab.get_by_text("Stopped")).to_be_visible()

    provider.chat.token_delay_seconds = 0
    say(other, "from the second tab")
    expect_conversation(talk_page, "from the first", "word3", "from the second tab", "word59")


def test_reader_is_not_moved_by_what_another_tab_says(
    open_page: OpenPage, api: httpx2.Client, provider: Provider
) -> None:
    provider.chat.text = WORDS
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    lines = [{"role": ("user", "assistant")[n % 2], "content": f"line {n}"} for n in range(40)]
    body = {"agent_id": agent, "messages": lines}
    session = api.post("/sessions", json=body).json()["id"]
    page = open_page(f"#/chat/{session}")
    expect(page.get_by_text("line 39", exact=True)).to_be_visible()
    region = page.get_by_role("region", name="Conversation")
    region.evaluate("(box) => box.scrollTo({top: 900})")
    expect(page.get_by_role("button", name="Jump to the latest")).to_be_visible()
    place = "(line) => line.getBoundingClientRect().top"
    before = page.get_by_text("line 20", exact=True).evaluate(place)

    api.post("/messages/text", json={"session_id": session, "content": "from elsewhere"})

    expect(page.get_by_text("word59")).to_be_attached(timeout=WAIT_MS)
    expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=WAIT_MS)
    assert page.get_by_text("line 20", exact=True).evaluate(place) == pytest.approx(before, abs=1)
    page.get_by_role("button", name="Jump to the latest").click()
    expect(page.get_by_text("word59")).to_be_in_viewport()


def test_page_follows_a_session_only_while_it_is_seen(
    talk_page: Page, api: httpx2.Client, server: ServerProcess
) -> None:
    session = session_of(talk_page)
    hide = """(hidden) => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with talk_page.expect_event("requestfailed", lambda one: one.url.endswith("/events")):
        talk_page.evaluate(hide, True)
    api.post("/messages/text", json={"session_id": session, "content": "meanwhile"})
    assert talk_page.get_by_role("article").count() == 0
    assert server.url in talk_page.url

    talk_page.evaluate(hide, False)

    expect_conversation(talk_page, "meanwhile", "How can I help")


def test_failed_answer_says_why_after_a_reload_too(talk_page: Page, provider: Provider) -> None:
    provider.fail("status_400", times=None)
    say(talk_page, "Hello")
    expect(talk_page.get_by_text("Failed.")).to_be_visible(timeout=WAIT_MS)
    talk_page.reload()

    expect(talk_page.get_by_text("Failed.")).to_be_visible(timeout=WAIT_MS)
    expect(talk_page.locator(".state code")).to_contain_text("provider")


def test_long_history_is_read_back_without_moving_the_view(
    open_page: OpenPage, api: httpx2.Client
) -> None:
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    lines = [{"role": ("user", "assistant")[n % 2], "content": f"line {n + 1}"} for n in range(260)]
    body = {"agent_id": agent, "messages": lines}
    session = api.post("/sessions", json=body).json()["id"]
    page = open_page(f"#/chat/{session}")
    expect(page.get_by_text("line 260", exact=True)).to_be_visible()
    assert page.get_by_role("article").count() <= 40

    region = page.get_by_role("region", name="Conversation")
    first = page.get_by_text("line 1", exact=True)
    for _ in range(80):
        if first.is_visible():
            break
        region.evaluate("(box) => box.scrollTo({top: 0})")
        page.wait_for_function("() => new Promise((r) => setTimeout(() => r(true), 60))")

    expect(first).to_be_visible()
    assert page.get_by_role("article").count() <= 160


def envelope(wav: bytes) -> np.ndarray:
    """Return the loudness of a 16 kHz recording in decades, for each 20 ms."""
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
    blocks = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    return np.log10(np.sqrt((blocks**2).mean(axis=1)) + 1e-3)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Return the highest correlation of two rows of loudness over all shifts of half a second."""
    best = -1.0
    for shift in range(-25, 60):
        a, b = (one[shift:], other) if shift >= 0 else (one, other[-shift:])
        size = min(len(a), len(b))
        if size > 60:
            best = max(best, float(np.corrcoef(a[:size], b[:size])[0, 1]))
    return best


def test_recording_is_stored_as_it_was_spoken_and_its_answer_is_heard(
    playwright: Playwright, server: ServerProcess, api: httpx2.Client, provider: Provider
) -> None:
    provider.chat.text = "One sentence is here. " * 12
    with launched(playwright) as browser:  # its microphone begins with the recording
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_role("button", name="Speak").click()
        expect(page.get_by_text(re.compile(r"Recording 0:03"))).to_be_visible(timeout=WAIT_MS)
        page.get_by_role("button", name="Send recording").click()
        expect(page.get_by_text("What is the weather like today?").first).to_be_visible(
            timeout=WAIT_MS
        )
        page.wait_for_function("() => CSS.highlights.has('spoken')", timeout=WAIT_MS)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".unheard")).to_be_visible(timeout=WAIT_MS)
        export = api.get(f"/sessions/{session_of(page)}/export?audio=true").json()

    recording = base64.b64decode(export["audio"][0]["recording"]["data"])
    spoken = envelope(RECORDING.read_bytes())
    other = envelope((RECORDING.parent / "mike_02.wav").read_bytes())
    assert likeness(envelope(recording), spoken) >= 0.9
    assert likeness(envelope(recording), other) < 0.75
    answer = export["messages"][1]
    assert answer["heard_content"] is not None
    assert answer["content"].startswith(answer["heard_content"])
    assert len(answer["heard_content"]) < len(answer["content"])


def test_space_bar_is_held_to_talk_and_hands_free_sends_after_silence(
    playwright: Playwright, server: ServerProcess, api: httpx2.Client, provider: Provider
) -> None:
    del api  # it empties the server
    provider.chat.text = "One sentence is here. Another one follows it, which is longer."
    provider.transcription.text = HOSTILE
    with launched(playwright) as browser:  # its microphone begins with the recording
        page = browser.new_page()
        page.add_init_script(path=PAGE_UNITS)
        page.goto(server.url)
        page.get_by_role("button", name="Hands-free").click()
        expect(page.get_by_role("article").first).to_contain_text("onerror", timeout=WAIT_MS)
        expect(page.locator(".receipt-line")).to_contain_text("first sound", timeout=WAIT_MS)
        assert page.get_by_role("article").locator("img").count() == 0
        page.get_by_role("button", name="End hands-free").click()
        with server.client() as client:
            (turn,) = client.get("/turns").json()
        heard = page.evaluate("(turn) => window.units.heard(turn)", turn["id"])

        page.locator("h1").focus()
        page.keyboard.down("Space")
        expect(page.get_by_text(re.compile(r"Recording 0:01"))).to_be_visible(timeout=WAIT_MS)
        page.keyboard.up("Space")
        expect(page.get_by_role("article")).to_have_count(4, timeout=WAIT_MS)
        page.get_by_role("button", name="Speak").click()
        page.get_by_role("button", name="Discard recording").click()
        expect(page.get_by_role("textbox", name="Message")).to_be_visible()
        assert page.get_by_role("article").count() == 4
    assert likeness(np.array(heard["played"]), np.array(heard["stored"])) >= 0.9


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("Object.defineProperty(window, 'isSecureContext', {value: false})", "only on https"),
        ("delete window.AudioWorkletNode", "no way to record"),
        (REFUSED_WITH.format("NotAllowedError"), "did not allow the microphone"),
        (REFUSED_WITH.format("NotFoundError"), "no microphone on this device"),
        (REFUSED_WITH.format("NotReadableError"), "Another program uses"),
    ],
)
def test_microphone_that_cannot_work_says_why(talk_page: Page, script: str, sentence: str) -> None:
    talk_page.evaluate(f"() => {{ {script} }}")

    talk_page.get_by_role("button", name="Speak").click()

    expect(talk_page.get_by_role("alert")).to_contain_text(sentence)
    say(talk_page, "typing works")
    expect_conversation(talk_page, "typing works", "How can I help")

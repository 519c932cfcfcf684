"""Images and documents in messages, and answers in JSON."""

import base64

import httpx2
import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.console.conftest import DESKTOP, HOSTILE, PHONE, WAIT_MS, OpenPage
from tests.console.test_pages import violations
from tests.console.test_talking import expect_conversation, say, session_of
from tests.files.made import png
from tests.support.provider import Provider

PHOTO: FilePayload = {"name": "photo.png", "mimeType": "image/png", "buffer": png(64, 48)}
NOTE: FilePayload = {"name": "note.md", "mimeType": "text/markdown", "buffer": b"# Twelve euros"}
PROGRAM: FilePayload = {"name": "x.exe", "mimeType": "text/plain", "buffer": b"MZ\x00\x01"}
GIVE = """([kind, name, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type: "image/png"}));
    const target = document.querySelector("textarea");
    target.dispatchEvent(kind === "paste"
        ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true})
        : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


def attach(page: Page, *files: FilePayload) -> None:
    page.locator("input[type=file]").set_input_files(list(files))


def test_image_and_document_go_with_the_message_and_are_shown_with_it(
    talk_page: Page, api: httpx2.Client, provider: Provider
) -> None:
    page = talk_page
    attach(page, PHOTO, NOTE, PROGRAM)
    chips = page.get_by_role("list", name="Attached").get_by_role("listitem")
    expect(chips.filter(has_text="photo.png")).to_contain_text("64 × 48", timeout=WAIT_MS)
    expect(chips.filter(has_text="note.md")).to_contain_text("tokens", timeout=WAIT_MS)
    expect(chips.filter(has_text="x.exe").get_by_role("alert")).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("button", name="Remove x.exe").click()
    page.reload()
    expect(chips).to_have_count(2)

    say(page, "What is the total?")

    expect_conversation(page, "What is the total?", "How can I help")
    expect(chips).to_have_count(0)
    for _ in range(2):
        question = page.get_by_role("article").first
        expect(question.get_by_role("img", name="Image")).to_have_js_property(
            "naturalWidth", 64, timeout=WAIT_MS
        )
        expect(question.get_by_role("link", name="note.md")).to_be_visible()
        page.reload()
    parts = api.get(f"/sessions/{session_of(page)}").json()["messages"][0]["parts"]
    assert [part["type"] for part in parts] == ["text", "image", "file"]
    assert "Twelve euros" in str(provider.to("chat")[0].body["messages"])


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_image_is_pasted_and_dropped(talk_page: Page, kind: str) -> None:
    talk_page.evaluate(GIVE, [kind, HOSTILE, base64.b64encode(png(8, 8)).decode()])

    chip = talk_page.get_by_role("list", name="Attached").get_by_role("listitem")
    expect(chip).to_contain_text("8 × 8", timeout=WAIT_MS)
    expect(chip.locator("bdi")).to_have_text(HOSTILE)
    talk_page.get_by_role("button", name="Send").click()
    expect(talk_page.get_by_role("article").first.get_by_role("img")).to_be_visible(timeout=WAIT_MS)


def test_refused_message_keeps_its_words_and_files(open_page: OpenPage, api: httpx2.Client) -> None:
    agent = api.post("/agents", json={"name": "Ada", "model": "m", "vision": False}).json()["id"]
    session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
    page = open_page(f"#/chat/{session}")
    attach(page, PHOTO)
    say(page, "What is this?")

    expect(page.get_by_role("alert")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_have_value("What is this?")
    expect(page.get_by_role("list", name="Attached")).to_contain_text("photo.png")
    assert api.get(f"/sessions/{session}").json()["messages"] == []


def test_answer_in_json_is_a_tree_and_a_rejected_one_is_not_shown(
    open_page: OpenPage, api: httpx2.Client, provider: Provider
) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "tickets": {"type": "integer"}},
        "required": ["city", "tickets"],
    }
    answers = iter(['{"city": "Wrong"}', '{"city": "<b>Oslo</b>", "tickets": 2}'])
    provider.chat.text = lambda _: next(answers)
    agent = api.post("/agents", json={"name": "Ada", "output_schema": schema}).json()["id"]
    session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
    page = open_page(f"#/chat/{session}")
    say(page, "Two tickets")

    for _ in range(2):
        expect_conversation(page, "Two tickets", "tickets")
        tree = page.locator(".tree")
        expect(tree.get_by_text("<b>Oslo</b>")).to_be_visible()
        expect(tree.get_by_text("2 fields")).to_be_visible()
        expect(page.get_by_text("Wrong")).to_have_count(0)
        page.reload()


@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_attachments_are_accessible(
    open_page: OpenPage, api: httpx2.Client, size: tuple[int, int], theme: str
) -> None:
    agent = api.post("/agents", json={"name": "Ada"}).json()["id"]
    session = api.post("/sessions", json={"agent_id": agent}).json()["id"]
    place = f"#/chat/{session}"
    page = open_page(place, size=size, color_scheme=theme, bypass_csp=True)
    attach(page, PHOTO, NOTE)
    say(page, "Look")
    expect_conversation(page, "Look", "How can I help")
    attach(page, PHOTO, NOTE, PROGRAM)
    expect(page.get_by_role("alert")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator(".uploads img")).to_be_visible(timeout=WAIT_MS)

    assert not violations(page)
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")

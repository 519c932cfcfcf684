"""`make screenshots`: the README's pictures, from a real server with invented conversations."""

import json
import random
import sqlite3
import sys
import tempfile
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import httpx2
from playwright.sync_api import Page, expect, sync_playwright
from typing_extensions import override

from tests.console.conftest import DESKTOP, PHONE, launched
from tests.console.test_talking import say
from tests.support.provider import Provider
from tests.support.server_process import COMMAND, ServerProcess

DOCS = Path(__file__).parents[2] / "docs"
QUESTION = "When does the museum open on Sunday, and can I bring my dog?"
ANSWER = (
    "On Sundays the museum opens at ten in the morning. The last entry is at half past four. Dogs "
    "are welcome in the garden and the café, but not in the galleries. Shall I keep a ticket for "
    "you?"
)
AGENTS = {"Marlowe": ("Plan my Sunday", "School class, 24 children"),
          "Lotse": ("Anreise mit dem Nachtzug", "Which platform is it?"),
          "Ada": ("A story about a lighthouse", "Invoice 2026-118 from Nordlicht")}  # fmt: skip
DAYS = 30


class OtherSite:
    """A page of another site on loopback, with the chat embedded once `html` has it."""

    def __init__(self) -> None:
        self.html = ""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # its name is the base class's
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(site.html.encode())

            @override
            def log_message(self, format: str, *_: object) -> None:  # its name
                del format

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def embed(self, server: ServerProcess, session_id: str) -> None:
        """Show the chat of this session."""
        with server.client() as client:
            token = client.post(f"/sessions/{session_id}/tokens", json={}).json()["token"]
        self.html = (
            '<!doctype html><html lang="en"><meta name="color-scheme" content="light dark">'
            '<meta name="viewport" content="width=device-width"><h1>Museum</h1>'
            f'<script src="{server.url}/embed.js" data-token="{token}"></script>'
        )


def fill(client: httpx2.Client, provider: Provider) -> None:
    """Make agents, and conversations with answers."""
    for name, titles in AGENTS.items():
        prompt = f"You are {name}, a friendly guide. Answer briefly and clearly."
        agent = client.post("/agents", json={"name": name, "system_prompt": prompt}).json()["id"]
        for title in titles:
            body = {"agent_id": agent, "title": title}
            session = client.post("/sessions", json=body).json()["id"]
            provider.chat.text = ANSWER
            for number in range(8):
                said = {"session_id": session, "content": f"{title}, {number}"}
                client.post("/messages/text", json=said).raise_for_status()


def spread(database: Path) -> None:
    """Spread the turns over a month, with tokens as in daily use."""
    chance = random.Random(7)  # noqa: S311  # a picture
    with closing(sqlite3.connect(database)) as db, db:
        for (turn_id,) in db.execute("SELECT id FROM turns").fetchall():
            age = timedelta(days=int(abs(chance.gauss(0, 11))) % DAYS)
            prompt, answer = chance.randint(300, 6000), chance.randint(40, 700)
            db.execute(
                "UPDATE turns SET created_at = ?, started_at = ?, prompt_tokens = ?,"
                " completion_tokens = ?, cost_nanos = ?, speech_in_seconds = ? WHERE id = ?",
                (
                    *[(datetime.now(UTC) - age).strftime("%Y-%m-%d %H:%M:%S.%f")] * 2,
                    prompt, answer, prompt * 200 + answer * 1000, chance.randint(0, 40), turn_id,
                ),
            )  # fmt: skip


def shoot(page: Page, folder: Path, name: str) -> None:
    page.wait_for_timeout(400)  # transitions
    page.screenshot(path=folder / f"{name}.png")
    sys.stdout.write(f"{folder / name}.png\n")


def main() -> None:
    """Write the pictures to `docs/`, or all views in both themes to the folder that is given."""
    folder, shows_all = (Path(sys.argv[1]), True) if sys.argv[1:] else (DOCS, False)
    with (
        tempfile.TemporaryDirectory() as data,
        Provider() as provider,
        OtherSite() as site,
        sync_playwright() as play,
    ):
        provider.transcription.text, provider.speech.ms_per_character = QUESTION, 60
        prices = {
            "gpt-transcribe": {"speech_in_minute": 0.0045},
            "tts-1": {"speech_out_characters": 15},
        }
        settings = {
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": provider.base_url,
            "PRICES": json.dumps(prices),
            "CORS_ORIGINS": site.url,
        }
        # A warm server would have imported this module, and with it the settings of nobody.
        with (
            ServerProcess(Path(data), command=COMMAND, **settings) as server,
            launched(play) as browser,
        ):
            page = browser.new_page(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
            page.goto(server.url)
            page.get_by_role("textbox").wait_for()
            shoot(page, folder, "console-first-page")
            with server.client() as client:
                fill(client, provider)
            spread(Path(data) / "agent-platform.db")
            page.reload()
            page.get_by_role("button", name="Marlowe").click()
            provider.chat.text = ANSWER
            page.get_by_role("button", name="Speak").click()
            page.wait_for_timeout(3200)
            page.get_by_role("button", name="Send recording").click()
            page.get_by_role("button", name="Details of this turn").first.wait_for()
            page.get_by_role("button", name="Details of this turn").first.click()
            page.wait_for_function(
                "() => CSS.highlights.get('spoken')?.values().next().value?.toString()"
                ".startsWith('The last')"
            )
            shoot(page, folder, "console-conversation")
            page.goto(f"{server.url}/#/usage")
            page.locator(".chart path").first.wait_for()
            shoot(page, folder, "console-usage")
            if shows_all:
                shoot_all(page, server, provider, site, folder)
                shoot_embedded(page, site, folder)


SHOP_TOOL = {
    "name": "get_order", "description": "Looks up an order by its number.", "kind": "client",
    "parameters": {"type": "object", "properties": {"number": {"type": "string"}}},
}  # fmt: skip
REFUND_TOOL = {
    "name": "refund", "description": "Pays an order back to the card it was paid with.",
    "kind": "http", "approval": "always", "parameters": {"type": "object"},
    "http": {"method": "POST", "url": "https://shop.example.com/refunds"},
}  # fmt: skip


def fill_with_tools(client: httpx2.Client, provider: Provider) -> dict[str, str]:
    """Make what the places of tools show; return their places by name."""
    ids = [client.post("/tools", json=tool).json()["id"] for tool in (SHOP_TOOL, REFUND_TOOL)]
    secret = {"name": "SHOP_KEY", "value": "12345678", "hosts": ["shop.example.com"]}
    client.post("/secrets", json=secret).raise_for_status()
    body = {"name": "Clerk", "tools": [{"tool_id": each} for each in ids]}
    agent = client.post("/agents", json=body).json()["id"]
    client.put(f"/agents/{agent}", json={"system_prompt": "You are a clerk. Ask before you pay."})
    session = client.post("/sessions", json={"agent_id": agent, "title": "Order A-17"}).json()
    said = {"session_id": session["id"], "content": "Where is order A-17? I want my money back."}
    provider.chat.text = "Order A-17 was sent on Tuesday. I pay it back now."
    provider.chat.calls = [("get_order", '{"number": "A-17"}')]
    client.post("/messages/text", json=said).raise_for_status()
    (waiting,) = client.get("/tool-calls?status=awaiting_output").json()
    provider.chat.calls = [("refund", '{"number": "A-17", "amount_eur": 29.9}')]
    output = {"output": {"number": "A-17", "status": "sent", "parcels": 2}}
    client.post(f"/tool-calls/{waiting['id']}/resolution", json=output).raise_for_status()
    client.get(f"/turns/{waiting['turn_id']}?wait_seconds=20")
    said["content"] = "Then give me my money back, please."
    client.post("/messages/text", json=said).raise_for_status()
    provider.chat.calls = []
    client.post("/keys", json={"name": "web shop", "scopes": ["turns:write", "sessions:write"]})
    return {
        "tools": "#/tools", "tool": f"#/tools/{ids[1]}", "tool-new": "#/tools/new",
        "servers": "#/tools?tab=servers", "secrets": "#/tools?tab=secrets", "inbox": "#/inbox",
        "approval": f"#/chat/{session['id']}", "turn": f"#/turns/{waiting['turn_id']}",
        "agent-tools": f"#/agents/{agent}?tab=tools", "versions": f"#/agents/{agent}?tab=versions",
        "compare": f"#/agents/{agent}?tab=compare",
    }  # fmt: skip


def shoot_all(
    page: Page, server: ServerProcess, provider: Provider, site: OtherSite, folder: Path
) -> None:
    """Make a picture of each view in both themes, as wide as a desk and as a phone."""
    chat = page.get_by_role("navigation").get_by_role("listitem").nth(9).get_by_role("link")
    places = {"talk": "#/", "chat": str(chat.get_attribute("href")), "agents": "#/agents",
              "sessions": "#/sessions", "bulk": "#/sessions", "usage": "#/usage",
              "keys": "#/keys", "system": "#/system", "palette": "#/system"}  # fmt: skip
    page.goto(f"{server.url}/#/agents")
    places["agent"] = str(page.locator(".card a").first.get_attribute("href"))
    with server.client() as client:
        session = places["chat"].rpartition("/")[2]
        site.embed(server, session)
        turn = client.get("/turns", params={"session_id": session, "limit": 1}).json()[0]["id"]
        places |= {"turn-plain": f"#/turns/{turn}", **fill_with_tools(client, provider)}
    provider.chat.text = ANSWER
    for size in (DESKTOP, PHONE):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            for name, place in places.items():
                page.goto("about:blank")
                page.goto(f"{server.url}/{place}")
                page.locator("h1").first.wait_for()
                act(page, name)
                page.wait_for_timeout(500)
                shoot(page, folder, f"{name}-{theme}-{size[0]}")


def act(page: Page, name: str) -> None:
    """Do what a view needs before it shows what it is for."""
    if name == "bulk":
        page.get_by_role("button", name="Select").click()
        for number in (1, 2, 4):
            page.get_by_role("checkbox").nth(number).check()
    elif name == "palette":
        page.keyboard.press("Control+k")
    elif name == "compare":
        say(page, "When do you open?")
        expect(page.get_by_role("article")).to_have_count(4)
    elif name == "approval":
        page.locator(".call summary").first.click()
    elif name.startswith("turn"):
        page.get_by_text("Events").click()


def shoot_embedded(page: Page, site: OtherSite, folder: Path) -> None:
    """Make pictures of the chat on a page of another site."""
    for size in (DESKTOP, PHONE):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.goto(site.url)
            page.get_by_role("button", name="Chat").click()
            page.get_by_role("textbox", name="Message").wait_for()
            shoot(page, folder, f"embedded-{theme}-{size[0]}")


if __name__ == "__main__":
    main()

"""`make screenshots`: the README's pictures, from a real server with invented conversations."""

import json
import random
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
from playwright.sync_api import Page, sync_playwright

from tests.console.conftest import DESKTOP, PHONE, launched
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

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
                "UPDATE turns SET created_at = ?, prompt_tokens = ?, completion_tokens = ?,"
                " cost_nanos = ?, speech_in_seconds = ? WHERE id = ?",
                (
                    (datetime.now(UTC) - age).strftime("%Y-%m-%d %H:%M:%S.%f"),
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
    with tempfile.TemporaryDirectory() as data, Provider() as provider, sync_playwright() as play:
        provider.transcription.text, provider.speech.ms_per_character = QUESTION, 60
        prices = {
            "gpt-transcribe": {"speech_in_minute": 0.0045},
            "tts-1": {"speech_out_characters": 15},
        }
        settings = {
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": provider.base_url,
            "PRICES": json.dumps(prices),
        }
        with ServerProcess(Path(data), **settings) as server, launched(play) as browser:
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
                shoot_all(page, server.url, folder)


def shoot_all(page: Page, url: str, folder: Path) -> None:
    chat = page.get_by_role("navigation").get_by_role("listitem").nth(6).get_by_role("link")
    agents = "#/agents"
    places = {"talk": "#/", "chat": str(chat.get_attribute("href")), "agents": agents,
              "sessions": "#/sessions", "usage": "#/usage", "keys": "#/keys",
              "system": "#/system"}  # fmt: skip
    page.goto(f"{url}/{agents}")
    places["agent"] = str(page.locator(".card a").first.get_attribute("href"))
    for size in (DESKTOP, PHONE):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            for name, place in places.items():
                page.goto(f"{url}/{place}")
                page.wait_for_timeout(500)
                shoot(page, folder, f"{name}-{theme}-{size[0]}")


if __name__ == "__main__":
    main()

"""`python -m bench.console`: measure the console in Chromium, against a server on loopback.

Times stand beside the same work without the console in the same run (a page that does nothing, the
server's answers alone), so that whatever else the machine does counts for both. `docs/console.md`
has the figures.
"""

import argparse
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from playwright.sync_api import Browser, Page, sync_playwright

from app.models import new_id
from tests.console.conftest import DESKTOP, launched
from tests.console.test_talking import say
from tests.support.provider import Provider
from tests.support.server_process import COMMAND, ServerProcess

_SCRIPT = Path(__file__).with_suffix(".js")
_PIECES, _CHARACTERS = 1350, 5400
_SESSIONS, _MESSAGES, _MESSAGES_AT_ONCE = 5000, 10_000, 1000
_ROWS_PER_SECOND, _ROW_PX, _PX_BACK_PER_SECOND = 300, 60, 3000
_SCROLL_SECONDS = 4
_LETTERS = 40
_VOICE_ROUNDS = 5
_WAIT_MS = 120_000
_SECTION = (
    "## Section {n}\n\nA *paragraph* of an answer with **bold words**, `code` and a "
    "[link](https://example.com/{n}).\n\n- one\n- two\n\n```python\nprint({n})\n```\n\n"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    what: str
    reach: str
    seen: str
    beside: str = ""
    """The same without the console."""


class ConsoleBench:
    """A server with a provider of no delay, and pages of it."""

    def __init__(self, browser: Browser, server: ServerProcess, provider: Provider) -> None:
        self.browser = browser
        self.server = server
        self.provider = provider
        self.client = server.client()

    @contextmanager
    def page(self, place: str = "") -> Generator[Page]:
        """Open a page of the console in a context of its own."""
        context = self.browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
        context.set_default_timeout(_WAIT_MS)
        context.add_init_script(path=_SCRIPT)
        page = context.new_page()
        if place != "empty":
            page.goto(f"{self.server.url}/{place}")
            page.locator("h1").first.wait_for()
        yield page
        context.close()

    def post(self, path: str, body: object) -> Any:  # noqa: ANN401  # JSON
        """Send a request, and return the answer."""
        response = self.client.post(path, json=body)
        response.raise_for_status()
        return response.json()

    def idle_frames(self, px: float) -> float:
        """Return the p95 of the frames of a page that is scrolled and does nothing, in ms."""
        with self.page("empty") as page:
            page.goto(f"{self.server.url}/console/icon.svg")  # any page, without scripts
            page.goto("data:text/html,<div style='height:900000px'></div>")
            return _frames(page, "none", px)["p95"]

    @property
    def agent_id(self) -> str:
        """The agent of all conversations."""
        known = self.client.get("/agents").json() or [self.post("/agents", {"name": "Ada"})]
        return known[0]["id"]


def _frames(page: Page, selector: str, px: float) -> dict[str, float]:
    arguments = [selector, px, _SCROLL_SECONDS]
    return page.evaluate("(given) => window.bench.frames(...given)", arguments)


def _ratio(seen: float, idle: float, what: str) -> str:
    return f"{what} {idle:.0f} ms: {seen / idle:.1f} times"


def first_page(bench: ConsoleBench) -> list[Figure]:
    """Measure what the first page transfers, and when its field is there."""
    sizes: dict[str, int] = {}
    urls: dict[str, str] = {}
    heads: dict[str, int] = {}

    def note_url(event: dict[str, Any]) -> None:
        urls[event["requestId"]] = event["request"]["url"].removeprefix(bench.server.url)

    def note_head(event: dict[str, Any]) -> None:
        heads[event["requestId"]] = int(event["response"]["encodedDataLength"])

    def note_size(event: dict[str, Any]) -> None:
        sizes[event["requestId"]] = int(event["encodedDataLength"])

    with bench.page("empty") as page:
        network: Any = page.context.new_cdp_session(page)
        network.on("Network.requestWillBeSent", note_url)
        network.on("Network.responseReceived", note_head)
        network.on("Network.loadingFinished", note_size)
        network.send("Network.enable")
        page.goto(bench.server.url)
        page.get_by_role("textbox").wait_for()
        page.wait_for_load_state("networkidle")
        ready_ms = page.evaluate("window.bench.fieldAt")
        answered_ms = page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd")
    own = sum(
        size - heads[each]
        for each, size in sizes.items()
        if urls[each].endswith((".js", ".css")) and "/vendor/" not in urls[each]
    )
    total_kb, own_kb = sum(sizes.values()) / 1000, own / 1000
    transferred = (
        f"{total_kb:.0f} KB with headers in {len(sizes)} requests, ours {own_kb:.0f} KB without"
    )
    return [
        Figure("first page, transferred", "<= 160 KB, our JS + CSS <= 65 KB", transferred),
        Figure(
            "its field is ready",
            "",
            f"{ready_ms:.0f} ms",
            f"its document alone {answered_ms:.0f} ms",
        ),
    ]


def _script_ms(session: Any) -> float:  # noqa: ANN401  # Playwright's own types are partial
    metrics: list[dict[str, Any]] = session.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "ScriptDuration") * 1000


def long_answer(bench: ConsoleBench) -> list[Figure]:
    """Measure the script time of a long answer in pieces, by the clock of its thread."""
    whole = "".join(_SECTION.format(n=n) for n in range(60))[:_CHARACTERS]
    size = len(whole) // _PIECES
    bench.provider.chat.text = [whole[at : at + size] for at in range(0, len(whole), size)]
    bench.provider.chat.token_delay_seconds = 0.004
    with bench.page() as page:
        session: Any = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = _script_ms(session)
        say(page, "Tell me all of it")
        page.get_by_role("button", name="Details of this turn").filter(has_text="tokens").wait_for()
        script = _script_ms(session) - before
        lexed_ms = page.evaluate("(text) => window.bench.lex(text)", whole) * _PIECES / 2
    bench.provider.chat.token_delay_seconds = 0
    what = f"an answer of {_CHARACTERS} characters in {_PIECES} pieces: script time"
    beside = f"lexing the whole text at each piece {lexed_ms:.0f} ms"
    return [Figure(what, "<= 600 ms", f"{script:.0f} ms", beside)]


def many_sessions(bench: ConsoleBench, database: Path) -> list[Figure]:
    """Measure the list of 5,000 sessions while it is scrolled."""
    bench.post("/sessions", {"agent_id": bench.agent_id, "title": "Conversation 0"})
    titles = ({"title": f"Conversation {number}"} for number in range(1, _SESSIONS))
    _copy_rows(database, "sessions", "Conversation 0", titles)
    px = _ROWS_PER_SECOND * _ROW_PX
    with bench.page("#/sessions") as page:
        page.locator(".virtual a").first.wait_for()
        seen = _frames(page, ".virtual", px)
    idle = bench.idle_frames(px)
    what = f"{_SESSIONS} sessions, {_ROWS_PER_SECOND} rows a second: p95 frame"
    longest = (
        f"{seen['p95']:.0f} ms, longest task {seen['longest']:.0f} ms, {seen['nodes']:.0f} nodes"
    )
    beside = _ratio(seen["p95"], idle, "an empty page")
    return [Figure(what, "<= 33 ms, no task > 100 ms", longest, beside)]


def long_history(bench: ConsoleBench, database: Path) -> list[Figure]:
    """Measure a conversation of 10,000 messages: opening it, scrolling back, typing in it."""
    lines = [
        {"role": ("user", "assistant")[n % 2], "content": f"Line {n}. " + "Some words. " * (n % 9)}
        for n in range(_MESSAGES_AT_ONCE)
    ]
    body = {"agent_id": bench.agent_id, "messages": lines, "title": "Long"}
    session = bench.post("/sessions", body)["id"]
    copies = range(_MESSAGES_AT_ONCE, _MESSAGES, _MESSAGES_AT_ONCE)
    _copy_rows(database, "messages", "Long", ({"seq": more} for more in copies))
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE sessions SET last_seq = ? WHERE title = 'Long'", (_MESSAGES,))
    with bench.page("#/system") as page:
        opened = page.evaluate("(session) => window.bench.open(session)", session)
        asked = page.evaluate("(session) => window.bench.ask(session)", session)
        typed = page.evaluate("(count) => window.bench.typing(count)", _LETTERS)
        back = _frames(page, ".thread", -_PX_BACK_PER_SECOND)
    with bench.page() as page:
        page.get_by_role("textbox").wait_for()
        typed_idle = page.evaluate("(count) => window.bench.typing(count)", _LETTERS)
    idle = bench.idle_frames(_PX_BACK_PER_SECOND)
    scrolled = f"{back['p95']:.0f} ms, longest task {back['longest']:.0f} ms"
    return [
        Figure(
            f"{_MESSAGES} messages: open", "<= 500 ms", f"{opened:.0f} ms",
            _ratio(opened, asked, "the server's two answers"),
        ),
        Figure(
            "scroll back: p95 frame", "<= 33 ms", scrolled,
            _ratio(back["p95"], idle, "an empty page"),
        ),
        Figure(
            "type: p95 until a letter is drawn", "<= 50 ms", f"{typed:.0f} ms",
            _ratio(typed, typed_idle, "in an empty conversation"),
        ),
    ]  # fmt: skip


def _copy_rows(
    database: Path, table: str, title: str, changes: Iterable[Mapping[str, object]]
) -> None:
    """Insert copies of the rows of a table that belong to the session with this title.

    Each of `changes` is one copy of all rows: what is different in it. A number is added.
    """
    with closing(sqlite3.connect(database)) as db, db:
        names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        (session,) = db.execute("SELECT id FROM sessions WHERE title = ?", (title,)).fetchone()
        key = "id" if table == "sessions" else "session_id"
        query = f"SELECT * FROM {table} WHERE {key} = ?"  # noqa: S608  # our own names
        rows: list[dict[str, Any]] = [
            dict(zip(names, row, strict=True)) for row in db.execute(query, (session,))
        ]
        marks = ", ".join("?" * len(names))
        for change in changes:
            for row in rows:
                made: dict[str, Any] = {"id": _like(row["id"], new_id())}
                for name, value in change.items():
                    made[name] = row[name] + value if isinstance(value, int) else value
                db.execute(f"INSERT INTO {table} VALUES ({marks})", tuple((row | made).values()))  # noqa: S608  # likewise


def _like(known: str | bytes, made: UUID) -> str | bytes:
    """Return an id in the form that the table has."""
    if isinstance(known, bytes):
        return made.bytes
    return str(made) if "-" in known else made.hex


def voice(bench: ConsoleBench) -> list[Figure]:
    """Measure how soon an answer is heard, and how soon it is silent and the server knows."""
    bench.provider.chat.text = "One sentence is here. " * 12
    bench.provider.transcription.text = "What is the weather like today?"
    heard, server, silent, told = list[float](), list[float](), list[float](), list[float]()
    with bench.page() as page:
        for _ in range(_VOICE_ROUNDS):
            page.get_by_role("button", name="Speak").click()
            page.get_by_text("Recording 0:02").wait_for()
            page.get_by_role("button", name="Send recording").click()
            page.wait_for_function("() => window.bench.sounds.length > 0")
            heard.append(page.evaluate("window.bench.sounds[0] - window.bench.clicked"))
            page.wait_for_function("() => CSS.highlights.has('spoken')")
            page.get_by_role("button", name="Stop").click()
            page.wait_for_function("() => window.bench.cancelledAfter() !== undefined")
            silent.append(page.evaluate("window.bench.silences[0] - window.bench.clicked"))
            told.append(page.evaluate("window.bench.cancelledAfter()"))
            page.locator("[aria-busy=true]").wait_for(state="detached")
            turn = bench.client.get("/turns", params={"limit": 1}).json()[0]
            server.append(turn["timings"]["first_audio_ms"])
    sound = "first sound after “send”, provider without delay"
    return [
        Figure(sound, "<= 250 ms", _spread(heard), f"of it the server {_spread(server)}"),
        Figure("Stop to silence", "<= 50 ms", _spread(silent)),
        Figure("Stop to the server's answer", "<= 150 ms", _spread(told)),
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f} ms ({min(values):.0f} to {max(values):.0f})"


def measure() -> Iterator[Figure]:
    """Run all measurements; yield their rows."""
    with tempfile.TemporaryDirectory() as folder, Provider() as provider, sync_playwright() as play:
        settings = {
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": provider.base_url,
            "LIMIT_REQUESTS_PER_MINUTE": "0",
        }
        # A warm server would have imported this module, and with it the settings of nobody.
        with (
            ServerProcess(Path(folder), command=COMMAND, **settings) as server,
            launched(play) as browser,
        ):
            bench = ConsoleBench(browser, server, provider)
            database = Path(folder) / "agent-platform.db"
            yield from first_page(bench)
            yield from voice(bench)
            yield from long_answer(bench)
            yield from long_history(bench, database)
            yield from many_sessions(bench, database)


def main() -> None:
    """Measure, and print a Markdown table, row by row."""
    argparse.ArgumentParser(prog="python -m bench.console", description=__doc__).parse_args()
    sys.stdout.write("| what | reach | seen | beside it |\n| --- | --- | --- | --- |\n")
    for each in measure():
        sys.stdout.write(f"| {each.what} | {each.reach} | {each.seen} | {each.beside} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

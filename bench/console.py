"""`python -m bench.console`: measure the console in Chromium, against a real server on loopback.

Each time is put beside the same work without the console in the same run (a page that does nothing,
the answers of the server alone), so that what else the machine does counts for both. `docs/console.md`
has the figures.
"""

import argparse
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from app.models import new_id
from bench.report import table
from tests.console.conftest import DESKTOP, launched
from tests.console.test_talking import say
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

_PIECES, _CHARACTERS = 1350, 5400
_SESSIONS, _MESSAGES, _MESSAGES_AT_ONCE = 5000, 10_000, 1000
_ROWS_PER_SECOND, _ROW_PX = 300, 60
_SCROLL_SECONDS = 4
_LETTERS = 40
_VOICE_ROUNDS = 5
_WAIT_MS = 120_000
_SECTION = (
    "## Section {n}\n\nA *paragraph* of an answer with **bold words**, `code` and a "
    "[link](https://example.com/{n}).\n\n- one\n- two\n\n```python\nprint({n})\n```\n\n"
)
_FRAMES = """async ([selector, px, seconds]) => {
    const box = document.querySelector(selector) ?? document.scrollingElement;
    const tasks = [];
    const watch = new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration)));
    watch.observe({type: "longtask"});
    const frames = [];
    const began = performance.now();
    for (let last = began; last - began < seconds * 1000;) {
        const now = await new Promise(requestAnimationFrame);
        frames.push(now - last);
        box.scrollTop += (px * Math.min(100, now - last)) / 1000;
        last = now;
    }
    watch.disconnect();
    frames.shift();
    frames.sort((a, b) => a - b);
    return {p95: frames[Math.floor(frames.length * 0.95)], longest: Math.max(0, ...tasks), nodes: document.querySelectorAll("*").length};
}"""
_TYPING = """async (count) => {
    const area = document.querySelector("textarea");
    area.focus();
    const times = [];
    for (let index = 0; index < count; index++) {
        const began = performance.now();
        document.execCommand("insertText", false, "x");
        await new Promise(requestAnimationFrame);
        await new Promise((done) => { const {port1, port2} = new MessageChannel(); port1.onmessage = done; port2.postMessage(0); });
        times.push(performance.now() - began);
    }
    return times.sort((a, b) => a - b)[Math.floor(count * 0.95)];
}"""
_SOUNDS = """
const {start, stop} = AudioBufferSourceNode.prototype;
window.sounds = [];
window.silences = [];
AudioBufferSourceNode.prototype.start = function (when = 0, ...rest) {
    if (this.context instanceof AudioContext) window.sounds.push(performance.now() + Math.max(0, when - this.context.currentTime) * 1000);
    return start.call(this, when, ...rest);
};
AudioBufferSourceNode.prototype.stop = function (...given) {
    window.silences.push(performance.now());
    return stop.apply(this, given);
};
addEventListener("click", () => { window.clicked = performance.now(); }, true);
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    what: str
    reach: str
    seen: str
    beside: str = ""
    """The same without the console, and how many times that."""


class Bench:
    """A server with a provider of no delay, and pages of it."""

    def __init__(self, browser: Browser, server: ServerProcess, provider: Provider) -> None:
        self.browser = browser
        self.server = server
        self.provider = provider
        self.client = server.client()

    @contextmanager
    def page(self, place: str = "", script: str = "") -> Generator[Page]:
        """Open a page of the console in a context of its own."""
        size = {"width": DESKTOP[0], "height": DESKTOP[1]}
        with closing(self.browser.new_context(viewport=size)) as context:  # type: ignore[type-var]
            context.set_default_timeout(_WAIT_MS)
            if script:
                context.add_init_script(script)
            page = context.new_page()
            page.goto(f"{self.server.url}/{place}")
            page.locator("h1").first.wait_for()
            yield page

    def post(self, path: str, body: object) -> Any:  # noqa: ANN401  # JSON
        response = self.client.post(path, json=body)
        response.raise_for_status()
        return response.json()

    def idle_frames(self, px: float) -> float:
        """Return the p95 of the frames of a page that is scrolled and does nothing, in ms."""
        with closing(self.browser.new_page()) as page:
            page.set_content("<div style='height: 900000px'></div>")
            return page.evaluate(_FRAMES, ["none", px, _SCROLL_SECONDS])["p95"]


def first_page(bench: Bench) -> list[Figure]:
    """Measure what the first page transfers, and when its field is there."""
    sizes: dict[str, int] = {}
    urls: dict[str, str] = {}
    context = bench.browser.new_context()
    page = context.new_page()
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.requestWillBeSent", lambda e: urls.__setitem__(e["requestId"], e["request"]["url"]))
    network.on("Network.loadingFinished", lambda e: sizes.__setitem__(e["requestId"], int(e["encodedDataLength"])))
    page.add_init_script("new MutationObserver(() => { if (document.querySelector('textarea')) window.ready ??= performance.now(); }).observe(document, {subtree: true, childList: true})")
    page.goto(bench.server.url)
    page.get_by_role("textbox").wait_for()
    page.wait_for_load_state("networkidle")
    ready_ms = page.evaluate("window.ready")
    answered_ms = page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd")
    context.close()
    files = {urls[each].removeprefix(bench.server.url): size for each, size in sizes.items()}
    own = {name: size for name, size in files.items() if name.endswith((".js", ".css")) and "/vendor/" not in name}
    total_kb, own_kb = sum(files.values()) / 1000, sum(own.values()) / 1000
    return [
        Figure("first page, transferred", "<= 160 KB, our JS + CSS <= 65", f"{total_kb:.0f} KB in {len(files)} requests, ours {own_kb:.0f} KB"),
        Figure("its field is ready", "", f"{ready_ms:.0f} ms", f"document alone {answered_ms:.0f} ms"),
    ]  # fmt: skip


def _script_ms(session: CDPSession) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "ScriptDuration") * 1000


def long_answer(bench: Bench) -> list[Figure]:
    """Measure the script time of a long answer in pieces, by the clock of its thread."""
    whole = "".join(_SECTION.format(n=n) for n in range(60))[:_CHARACTERS]
    size = len(whole) // _PIECES
    bench.provider.chat.text = [whole[at : at + size] for at in range(0, len(whole), size)]
    bench.provider.chat.token_delay_seconds = 0.004
    with bench.page() as page:
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = _script_ms(session)
        say(page, "Tell me all of it")
        page.get_by_role("button", name="Details of this turn").filter(has_text="tokens").wait_for()
        script = _script_ms(session) - before
        whole_ms = page.evaluate(
            "async (text) => { const {marked} = await import('marked'); const began = performance.now();"
            " for (let n = 0; n < 10; n++) marked.lexer(text); return (performance.now() - began) / 10; }",
            whole,
        )  # fmt: skip
    bench.provider.chat.token_delay_seconds = 0
    return [Figure(
        f"an answer of {_CHARACTERS} characters in {_PIECES} pieces: script time", "<= 600 ms",
        f"{script:.0f} ms", f"lexed whole each time it would be {whole_ms * _PIECES / 2:.0f} ms for the lexer alone",
    )]  # fmt: skip


def many_sessions(bench: Bench) -> list[Figure]:
    """Measure the list of 5,000 sessions while it is scrolled."""
    agent = bench.client.get("/agents").json()[0]["id"]
    for number in range(_SESSIONS):
        bench.post("/sessions", {"agent_id": agent, "title": f"Conversation {number}"})
    px = _ROWS_PER_SECOND * _ROW_PX
    with bench.page("#/sessions") as page:
        page.locator(".virtual a").first.wait_for()
        seen = page.evaluate(_FRAMES, [".virtual", px, _SCROLL_SECONDS])
    idle = bench.idle_frames(px)
    return [Figure(
        f"{_SESSIONS} sessions at {_ROWS_PER_SECOND} rows a second: p95 frame", "<= 33 ms, no task > 100 ms",
        f"{seen['p95']:.0f} ms, longest task {seen['longest']:.0f} ms, {seen['nodes']} nodes",
        f"an empty page {idle:.0f} ms: x {seen['p95'] / idle:.1f}",
    )]  # fmt: skip


def long_history(bench: Bench, database: Path) -> list[Figure]:
    """Measure a conversation of 10,000 messages: opening it, scrolling back, typing in it."""
    agent = bench.client.get("/agents").json()[0]["id"]
    roles = ("user", "assistant")
    lines = [{"role": roles[n % 2], "content": f"Line {n}. " + "Some words of it. " * (n % 9)} for n in range(_MESSAGES_AT_ONCE)]
    session = bench.post("/sessions", {"agent_id": agent, "messages": lines, "title": "Long"})["id"]
    _multiply(database, _MESSAGES // _MESSAGES_AT_ONCE)
    with bench.page() as page:
        page.get_by_role("textbox").wait_for()
        page.evaluate("window.began = performance.now(); location.hash = '#/system'")
        page.locator("h1", has_text="System").wait_for()
        opened = page.evaluate(
            "async (id) => { const began = performance.now(); location.hash = `#/chat/${id}`;"
            " while (document.querySelectorAll('article').length < 30) await new Promise(requestAnimationFrame);"
            " return performance.now() - began; }", session,
        )  # fmt: skip
        asked = page.evaluate(
            "async (id) => { const began = performance.now(); await Promise.all(["
            "`sessions/${id}?messages=false`, `sessions/${id}/messages?order=desc&limit=100`]"
            ".map(async (path) => (await fetch(path)).json())); return performance.now() - began; }", session,
        )  # fmt: skip
        typed = page.evaluate(_TYPING, _LETTERS)
        back = page.evaluate(_FRAMES, [".thread", -3000, _SCROLL_SECONDS])
    with bench.page() as page:
        typed_idle = page.evaluate(_TYPING, _LETTERS)
    idle = bench.idle_frames(3000)
    return [
        Figure(f"{_MESSAGES} messages: open", "<= 500 ms", f"{opened:.0f} ms", f"the server's two answers {asked:.0f} ms"),
        Figure("scroll back: p95 frame", "<= 33 ms", f"{back['p95']:.0f} ms, longest task {back['longest']:.0f} ms", f"an empty page {idle:.0f} ms: x {back['p95'] / idle:.1f}"),
        Figure("type: p95 to the next frame", "<= 50 ms", f"{typed:.0f} ms", f"in an empty conversation {typed_idle:.0f} ms: x {typed / typed_idle:.1f}"),
    ]  # fmt: skip


def _multiply(database: Path, times: int) -> None:
    """Copy the messages of the session named `Long` behind them, until there are `times` as many."""
    with closing(sqlite3.connect(database)) as db, db:
        names = [row[1] for row in db.execute("PRAGMA table_info(messages)")]
        (session,) = db.execute("SELECT id FROM sessions WHERE title = 'Long'").fetchone()
        rows = db.execute(f"SELECT {', '.join(names)} FROM messages WHERE session_id = ? ORDER BY seq", (session,)).fetchall()  # noqa: S608  # names of columns
        key, seq = names.index("id"), names.index("seq")
        is_bytes = isinstance(rows[0][key], bytes)
        for copy in range(1, times):
            made = []
            for row in rows:
                values = list(row)
                values[key] = new_id().bytes if is_bytes else (str(new_id()) if "-" in row[key] else new_id().hex)
                values[seq] += copy * len(rows)
                made.append(values)
            db.executemany(f"INSERT INTO messages ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", made)  # noqa: S608  # names of columns
        db.execute("UPDATE sessions SET last_seq = ? WHERE id = ?", (times * len(rows), session))


def voice(bench: Bench) -> list[Figure]:
    """Measure how soon an answer is heard, and how soon it is silent and the server knows."""
    bench.provider.chat.text = "One sentence is here. " * 12
    bench.provider.transcription.text = "What is the weather like today?"
    heard, server, silent, told = list[float](), list[float](), list[float](), list[float]()
    with bench.page(script=_SOUNDS) as page:
        for _ in range(_VOICE_ROUNDS):
            page.evaluate("window.sounds.length = 0; window.silences.length = 0; performance.clearResourceTimings()")
            page.get_by_role("button", name="Speak").click()
            page.get_by_text("Recording 0:02").wait_for()
            page.get_by_role("button", name="Send recording").click()
            page.wait_for_function("() => window.sounds.length > 0")
            heard.append(page.evaluate("window.sounds[0] - window.clicked"))
            page.wait_for_function("() => CSS.highlights.has('spoken')")
            page.get_by_role("button", name="Stop").click()
            page.wait_for_function("() => performance.getEntriesByType('resource').some((each) => each.name.endsWith('/cancel') && each.responseEnd)")
            silent.append(page.evaluate("window.silences[0] - window.clicked"))
            told.append(page.evaluate("performance.getEntriesByType('resource').find((each) => each.name.endsWith('/cancel')).responseEnd - window.clicked"))
            page.locator("[aria-busy=true]").wait_for(state="detached")
            turn = bench.client.get("/turns", params={"limit": 1}).json()[0]
            server.append(turn["timings"]["first_audio_ms"])
    ms: Callable[[Sequence[float]], str] = lambda values: f"{statistics.median(values):.0f} ms ({min(values):.0f} to {max(values):.0f})"  # noqa: E731
    return [
        Figure("first sound after “send”, provider without delay", "<= 250 ms", ms(heard), f"of it the server {ms(server)}"),
        Figure("Stop to silence", "<= 50 ms", ms(silent)),
        Figure("Stop to the server's answer", "<= 150 ms", ms(told)),
    ]  # fmt: skip


def measure() -> list[Figure]:
    """Run all measurements; return their rows."""
    settings = {"OPENAI_API_KEY": "k", "LIMIT_REQUESTS_PER_MINUTE": "0"}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, Provider() as provider, sync_playwright() as play:
        settings["OPENAI_BASE_URL"] = provider.base_url
        with ServerProcess(Path(folder), **settings) as server, launched(play) as browser:
            bench = Bench(browser, server, provider)
            figures += first_page(bench)
            figures += voice(bench)
            figures += long_answer(bench)
            figures += long_history(bench, Path(folder) / "agent-platform.db")
            figures += many_sessions(bench)
    return figures


def main() -> None:
    """Measure, and print a Markdown table."""
    argparse.ArgumentParser(prog="python -m bench.console", description=__doc__).parse_args()
    rows = [["what", "reach", "seen", "beside it"]]
    rows += [[each.what, each.reach, each.seen, each.beside] for each in measure()]
    sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%d}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()

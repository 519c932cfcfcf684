"""Debian's Firefox, driven by WebDriver BiDi, which is built in.

The protocol is https://w3c.github.io/webdriver-bidi/. Playwright drives a Firefox of its own only,
and selenium needs `geckodriver`, which Debian has not (decision 0026).
"""

import json
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.support.tools import find_tool

_START_SECONDS = 120
_WAIT_SECONDS = 60
"""Only ends a test that fails."""
_PAUSE_SECONDS = 0.05
_ADDRESS_FILE = "WebDriverBiDiServer.json"
_PREFERENCES = {
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "media.navigator.permission.disabled": True,
    "media.navigator.streams.fake": True,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "remote.active-protocols": 1,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}
KEYS = {
    "Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Shift": "\ue008", "Control": "\ue009",
    "Space": " ", "ArrowUp": "\ue013", "ArrowDown": "\ue015",
}  # fmt: skip
_WATCH_POLICIES = """() => addEventListener("securitypolicyviolation", (event) =>
    console.error(`CSP ${event.violatedDirective} ${event.blockedURI}`))"""


class FirefoxFailed(Exception):
    """A command was refused; the message is Firefox's."""


class Firefox:
    """One process with an empty profile. Each page has storage and cookies of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_id = 0
        self._pages: dict[str, FirefoxPage] = {}
        self.command("session.new", capabilities={})
        events = ["log.entryAdded", "network.beforeRequestSent"]
        self.command("session.subscribe", events=events)

    def command(self, method: str, **parameters: Any) -> Any:  # noqa: ANN401  # JSON
        """Send a command and return its result. Raises `FirefoxFailed`."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(_WAIT_SECONDS))
            if answer.get("type") == "event":
                self._note(answer["method"], answer["params"])
            elif answer["id"] == self._last_id:
                if answer["type"] == "error":
                    raise FirefoxFailed(f"{method}: {answer['message']}")
                return answer["result"]

    def _note(self, event: str, given: dict[str, Any]) -> None:
        source = given["source"] if event == "log.entryAdded" else given
        page = self._pages.get(source.get("context") or "")
        if page is None:
            return
        if event == "network.beforeRequestSent":
            page.requests.append(given["request"]["url"])
        elif given["level"] == "error":
            page.errors.append(given["text"])

    @contextmanager
    def page(self, url: str, size: tuple[int, int]) -> "Generator[FirefoxPage]":
        """Open a page; it is closed after the block, and what it stored is gone."""
        user: str = self.command("browser.createUserContext")["userContext"]
        made = self.command("browsingContext.create", type="tab", userContext=user)
        page = FirefoxPage(self, made["context"])
        self._pages[page.context] = page
        width, height = size
        viewport = {"width": width, "height": height}
        self.command("browsingContext.setViewport", context=page.context, viewport=viewport)
        self.command(
            "script.addPreloadScript",
            functionDeclaration=_WATCH_POLICIES,
            contexts=[page.context],
        )
        page.goto(url)
        try:
            yield page
        finally:
            del self._pages[page.context]
            self.command("browser.removeUserContext", userContext=user)


class FirefoxPage:
    """A tab. `errors` has the lines that its console shows as errors, and exceptions."""

    def __init__(self, firefox: Firefox, context: str) -> None:
        self._firefox = firefox
        self.context = context
        self.errors: list[str] = []
        self.requests: list[str] = []

    def goto(self, url: str) -> None:
        self._firefox.command(
            "browsingContext.navigate", context=self.context, url=url, wait="complete"
        )

    def reload(self) -> None:
        self._firefox.command("browsingContext.reload", context=self.context, wait="complete")

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401  # JSON
        """Return the value of a JavaScript expression, which may be a promise, as JSON has it."""
        result = self._firefox.command(
            "script.callFunction",
            functionDeclaration=f"async () => JSON.stringify((await ({expression})) ?? null)",
            target={"context": self.context},
            awaitPromise=True,
        )
        if result["type"] == "exception":
            raise FirefoxFailed(result["exceptionDetails"]["text"])
        return json.loads(result["result"]["value"])

    def wait_for(self, expression: str) -> None:
        """Return once an expression is true. Raises `TimeoutError`."""
        self._until(lambda: self.evaluate(f"Boolean({expression})"), expression)

    def wait_for_text(self, text: str, within: str = "body") -> None:
        """Return once an element of the page shows this text."""
        words = json.dumps(text)
        self.wait_for(
            f"[...document.querySelectorAll({json.dumps(within)})]"
            f".some((each) => each.innerText.includes({words}))"
        )

    def _until(self, condition: Callable[[], object], what: str) -> None:
        give_up_at = time.monotonic() + _WAIT_SECONDS
        while not condition():
            if time.monotonic() > give_up_at:
                shown = self.evaluate("document.body.innerText")
                raise TimeoutError(f"{what} did not hold; the page shows: {shown}")
            time.sleep(_PAUSE_SECONDS)

    def find(self, role: str, name: str) -> dict[str, Any]:
        """Return the first element with this role and accessible name, once it is there."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            locator = {"type": "accessibility", "value": {"role": role, "name": name}}
            found[:] = self._firefox.command(
                "browsingContext.locateNodes", context=self.context, locator=locator
            )["nodes"]
            return bool(found)

        self._until(look, f"{role} {name!r}")
        return {"sharedId": found[0]["sharedId"]}

    def click(self, role: str, name: str) -> None:
        """Click an element in its middle, with a mouse."""
        element = {"type": "element", "element": self.find(role, name)}
        self._perform("pointer", [
            {"type": "pointerMove", "x": 0, "y": 0, "origin": element},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ])  # fmt: skip

    def press(self, *keys: str) -> None:
        """Press keys together, such as `Control` and `k`, and let go of them."""
        values = [KEYS.get(key, key) for key in keys]
        down = [{"type": "keyDown", "value": value} for value in values]
        up = [{"type": "keyUp", "value": value} for value in reversed(values)]
        self._perform("key", [*down, *up])

    def type(self, text: str) -> None:
        strokes = ("keyDown", "keyUp")
        self._perform("key", [{"type": each, "value": key} for key in text for each in strokes])

    def _perform(self, kind: str, actions: list[dict[str, Any]]) -> None:
        source = {"type": kind, "id": kind, "actions": actions}
        self._firefox.command("input.performActions", context=self.context, actions=[source])

    def screenshot(self) -> str:
        """Return a PNG of the viewport, as base64."""
        command = "browsingContext.captureScreenshot"
        data: str = self._firefox.command(command, context=self.context)["data"]
        return data


@contextmanager
def launched(folder: Path, preferences: dict[str, object]) -> Generator[Firefox]:
    """Run Debian's Firefox with its profile in `folder`. Raises `ToolMissing`."""
    lines = [
        f"user_pref({json.dumps(name)}, {json.dumps(value)});"
        for name, value in {**_PREFERENCES, **preferences}.items()
    ]
    (folder / "user.js").write_text("\n".join(lines))
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "MOZ_CRASHREPORTER_DISABLE": "1"}
    command = [
        find_tool("firefox-esr"), "--headless", "--no-remote", "--profile", str(folder),
        "--remote-debugging-port", "0", "about:blank",
    ]  # fmt: skip
    with (folder / "firefox.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        address = _address(process, folder)
        with connect(address, max_size=None, open_timeout=_START_SECONDS) as connection:
            yield Firefox(connection)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Return the address of its WebSocket, once it listens."""
    give_up_at = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up_at:
        assert process.poll() is None, (folder / "firefox.log").read_text()
        try:
            said = json.loads((folder / _ADDRESS_FILE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(_PAUSE_SECONDS)
        else:
            return f"ws://{said['ws_host']}:{said['ws_port']}/session"
    raise TimeoutError((folder / "firefox.log").read_text())

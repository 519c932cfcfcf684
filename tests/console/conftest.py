"""A real server, a provider on loopback, and a real browser with a profile for each test."""

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from tests.support.application import AUDIO
from tests.support.ports import free_port
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess
from tests.support.tool_server import Answer, ToolServer, tool_server
from tests.support.tools import ToolMissing, find_tool

WAIT_MS = 30_000
DESKTOP, PHONE = (1280, 800), (390, 844)
RECORDING = AUDIO / "anna_01.wav"
PAGE_UNITS = Path(__file__).parent / "tools" / "page_units.js"
HOSTILE = "<img src=x onerror=alert(1)>\"'`${7*7}{{7*7}} \u202eevil\u202c \u05e9\u05dc\u05d5\u05dd"

OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="package")
def tool_api() -> Iterator[ToolServer]:
    """The API behind the agents' tools, in a thread."""
    started: Queue[tuple[ToolServer, asyncio.AbstractEventLoop, asyncio.Event]] = Queue()

    async def serve() -> None:
        ended = asyncio.Event()
        async with tool_server() as tools:
            started.put((tools, asyncio.get_running_loop(), ended))
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    tools, loop, ended = started.get(timeout=60)
    yield tools
    loop.call_soon_threadsafe(ended.set)
    thread.join()


@pytest.fixture(scope="package")
def mcp_port() -> int:
    """Where an MCP server may be; the test that needs one starts it."""
    return free_port()


@pytest.fixture(scope="package")
def server(
    provider: Provider,
    tool_api: ToolServer,
    mcp_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("console")
    settings = {
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": provider.base_url,
        "CHAT_MODEL_VISION": "true",
        "CORS_ORIGINS": tool_api.url,
        "TOOLS_ALLOWED_ADDRESSES": f"{tool_api.allowed},127.0.0.1:{mcp_port}",
    }
    with ServerProcess(folder, **settings) as server:
        yield server


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with launched(playwright) as browser:
        yield browser


@contextmanager
def launched(playwright: Playwright) -> Generator[Browser]:
    """Debian's Chromium, whose microphone plays a recording once."""
    path = find_tool("chromium")
    arguments = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={RECORDING}%noloop",
    ]
    browser = playwright.chromium.launch(executable_path=path, args=arguments)
    yield browser
    browser.close()


@pytest.fixture
def api(server: ServerProcess, provider: Provider, tool_api: ToolServer) -> Iterator[httpx2.Client]:
    """A client of the server, which is as it was after its start."""
    provider.reset()
    tool_api.answer, tool_api.respond = Answer(), None
    tool_api.requests.clear()
    with server.client() as api:
        for session in api.get("/sessions").json():
            api.delete(f"/sessions/{session['id']}")
        for agent in api.get("/agents").json():
            api.put(f"/agents/{agent['id']}", json={"tools": []})
            api.delete(f"/agents/{agent['id']}")
        for mcp_server in api.get("/mcp-servers").json():
            api.delete(f"/mcp-servers/{mcp_server['id']}")
        for tool in api.get("/tools").json():
            api.delete(f"/tools/{tool['id']}")
        for secret in api.get("/secrets").json():
            api.delete(f"/secrets/{secret['name']}")
        yield api


@pytest.fixture
def open_page(server: ServerProcess, browser: Browser, api: httpx2.Client) -> Iterator[OpenPage]:
    """Open a page of the console; at the end nothing may have been refused, or asked elsewhere."""
    del api  # it empties the server
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def open_page(place: str = "", *, size: tuple[int, int] = DESKTOP, **options: object) -> Page:
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error('CSP '"
            " + event.violatedDirective + ' ' + event.blockedURI))"
        )
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda line: faults.append(line.text) if "CSP" in line.text else None)

        def check_host(url: str) -> None:
            if not url.startswith((server.url, "data:", "blob:")):
                faults.append(f"request: {url}")

        page.on("request", lambda request: check_host(request.url))
        page.goto(f"{server.url}/{place}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def talk_page(open_page: OpenPage, api: httpx2.Client) -> Page:
    """A page with one session that is open and empty."""
    agent = api.post("/agents", json={"name": "Ada"}).json()
    session = api.post("/sessions", json={"agent_id": agent["id"]}).json()
    page = open_page(f"#/chat/{session['id']}")
    page.get_by_role("textbox", name="Message").wait_for()
    return page


@pytest.fixture
def site(browser: Browser, api: httpx2.Client) -> Iterator[Page]:
    """A page of another site, which forbids itself scripts and styles of its own."""
    del api  # it empties the server
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def tools() -> Path:
    """Return the folder of the npm packages that checks use."""
    return Path(__file__).parent / "tools"


def npm_package(path: str) -> Path:
    """Return a file of the npm packages. Raises `ToolMissing` where they are not installed."""
    found = tools() / "node_modules" / path
    if not found.exists():
        raise ToolMissing(f"npm packages are missing: `npm ci --prefix {tools()}`.")
    return found

"""The files of the console: served without a key, unchanged from their packages, and small."""

import gzip
import hashlib
import re
from pathlib import Path

import httpx2
import pytest

from app.core.config import Settings
from app.http.console_files import CONSOLE_FILES, FOLDER
from app.state import State
from tests.conftest import client_of

pytestmark = pytest.mark.anyio

OWN = sorted(name for name in CONSOLE_FILES if not name.startswith(("vendor/", "fonts/")))
VENDORED = {
    "vendor/preact.mjs": "bdcbd9abdf2c77c5c45326eab42191e949222d479d0d5f69467387a77040cb55",
    "vendor/hooks.mjs": "e862ab2973aa6455eaa0f77c5d832d2157d6be59a17c8ba546550a575b58c6b4",
    "vendor/signals-core.module.js": (
        "45c263e519aaf3b6ef9b0a12a8b63dc06cdfcbd35bffc8203ec68c6117e6fcd7"
    ),
    "vendor/signals.module.js": "89074d9db96b7f8e1be47f93913355b8cef829fb939f18a3a3ee320854ceebf8",
    "vendor/htm.module.js": "ab33dd3f38059b9be4d5f5350128eefb2356639c4e0bbe9d9e8b3ba75847e9e4",
    "vendor/marked.esm.js": "5371fea86fd0656b4fc7bea7c94c663109d82789b69433eeee78d42895aa44de",
    "fonts/instrument-sans-latin-wght-normal.woff2": (
        "2ee17598a98d8a59e4df8152d015bec9ab8e4d5672cc0ab42bef806b568e3971"
    ),
}
"""SHA-256 of what is taken from npm packages, as docs/console.md lists them."""
LICENCES = {
    "vendor/LICENSE.preact": "MIT",
    "vendor/LICENSE.preact-signals": "MIT",
    "vendor/LICENSE.htm": "Apache License",
    "vendor/LICENSE.marked": "Permission is hereby granted",
    "fonts/LICENSE.instrument-sans": "SIL Open Font License, Version 1.1",
}
MOST_TRANSFERRED_BYTES = 160_000
MOST_OWN_BYTES = 65_000
MOST_EMBEDDED_BYTES = 40_000
MOST_BYTES = 120_000
"""Of all places together: most are loaded when they are shown (decision 0022)."""


def gzipped(name: str) -> int:
    return len(gzip.compress((FOLDER / name).read_bytes(), mtime=0))


def imports_of(name: str, pattern: str = r'(?:from|import)\s*\(?"(\.[^"]+)"') -> set[str]:
    """Return the files that a module imports by a relative path."""
    found: list[str] = re.findall(pattern, (FOLDER / name).read_text())
    return {
        ((FOLDER / name).parent / path).resolve().relative_to(FOLDER).as_posix() for path in found
    }


def modules_of_first_page() -> set[str]:
    """Return what `main.js` imports, directly or not, before a view is chosen."""
    needed, looked_at = {"main.js"}, set[str]()
    while needed - looked_at:
        name = (needed - looked_at).pop()
        looked_at.add(name)
        needed |= imports_of(name, r'(?:from|import)\s*"(\.[^"]+)"')
    return needed


@pytest.mark.parametrize("name", VENDORED)
def test_vendored_file_is_that_of_its_package(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == VENDORED[name]
    assert name.rpartition("/")[2] in (FOLDER.parents[1] / "docs/console.md").read_text()


def test_nothing_else_is_vendored_and_each_licence_is_there() -> None:
    assert {name for name in CONSOLE_FILES if name not in OWN} == set(VENDORED)
    for name, words in LICENCES.items():
        assert words in (FOLDER / name).read_text(), name


def test_first_page_is_small() -> None:
    page = (FOLDER / "index.html").read_text()
    linked = re.findall(r'(?:href|src)="console/([^"/]+\.(?:css|js))"', page)
    own = sum(map(gzipped, modules_of_first_page() | set(linked)))
    fonts = sum((FOLDER / name).stat().st_size for name in VENDORED if name.startswith("fonts/"))
    vendored = sum(gzipped(name) for name in VENDORED if name.startswith("vendor/"))

    assert {"main.js", "theme.js", "tokens.css", "console.css"} <= set(linked)
    assert own <= MOST_OWN_BYTES
    assert sum(gzipped(name) for name in OWN if name.endswith((".js", ".css"))) <= MOST_BYTES
    assert own + fonts + vendored + gzipped("index.html") <= MOST_TRANSFERRED_BYTES


async def test_embedded_chat_is_one_small_file_for_other_sites(
    settings: Settings, state: State
) -> None:
    async with client_of(settings, state, peer="203.0.113.9") as stranger:
        script = await stranger.get("/embed.js")

    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert script.headers["cross-origin-resource-policy"] == "cross-origin"
    assert 1000 < len(script.content) <= MOST_EMBEDDED_BYTES
    assert not re.search(r"\bimport[ (]", script.text)


def test_page_preloads_each_module_that_its_first_view_needs() -> None:
    page = (FOLDER / "index.html").read_text()
    preloaded: set[str] = set(re.findall(r'<link rel="modulepreload" href="console/([^"]+)"', page))

    vendored = {name for name in VENDORED if name.startswith("vendor/")}
    assert preloaded == modules_of_first_page() | vendored


@pytest.mark.parametrize("name", [name for name in OWN if name.endswith(".js")])
def test_modules_import_in_one_direction(name: str) -> None:
    layers = {"main.js": 3, "views": 2, "lib": 1, "strings.js": 0}
    own_layer = layers.get(name.partition("/")[0], 0)

    for imported in imports_of(name):
        assert layers[imported.partition("/")[0]] <= own_layer, imported


async def test_page_and_its_files_need_no_key(settings: Settings, state: State) -> None:
    async with client_of(settings, state, peer="203.0.113.9") as stranger:
        page = await stranger.get("/")
        files = {name: await stranger.get(f"/console/{name}") for name in sorted(CONSOLE_FILES)}
        refused = await stranger.get("/console/../app/main.py")

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["permissions-policy"] == "microphone=(self)"
    for name, file in files.items():
        assert file.content == (FOLDER / name).read_bytes(), name
        assert file.headers["cache-control"] == "no-cache"
        assert file.headers["x-content-type-options"] == "nosniff"
    assert refused.status_code == 401


async def test_page_may_load_from_its_own_server_alone(client: httpx2.AsyncClient) -> None:
    response = await client.get("/")
    parts = response.headers["content-security-policy"].split("; ")
    policy = {name: value for name, _, value in (part.partition(" ") for part in parts)}

    assert policy["default-src"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "'none'"
    assert "unsafe" not in str(policy)
    assert "http" not in str(policy)
    sources = re.findall(r'(?:src|href)="([^"#]+)"', response.text)
    assert all(source.startswith(("console/", "docs")) for source in sources), sources
    assert "style=" not in response.text


async def test_copy_that_is_current_is_not_sent_again(client: httpx2.AsyncClient) -> None:
    first = await client.get("/console/main.js", headers={"Accept-Encoding": "gzip"})
    again = await client.get("/console/main.js", headers={"If-None-Match": first.headers["etag"]})
    plain = await client.get("/console/main.js", headers={"Accept-Encoding": "identity"})

    assert first.headers["content-encoding"] == "gzip"
    assert first.headers["vary"] == "Accept-Encoding"
    assert first.content == plain.content
    assert "content-encoding" not in plain.headers
    assert (again.status_code, again.content) == (304, b"")


async def test_unknown_file_and_other_methods_are_refused(client: httpx2.AsyncClient) -> None:
    missing = await client.get("/console/nothing.js")
    posted = await client.post("/console/main.js")
    licence = await client.get("/console/vendor/LICENSE.preact")

    assert missing.json()["code"] == "not-found"
    assert posted.status_code == 405
    assert licence.status_code == 404


def test_folder_has_no_stray_files() -> None:
    known = {".js", ".mjs", ".css", ".svg", ".html", ".woff2", ".ts"}
    stray = [
        path for path in Path(FOLDER).rglob("*")
        if path.is_file() and path.suffix not in known and not path.name.startswith("LICENSE.")
    ]  # fmt: skip
    assert not stray

"""The files of the console: the page at `/`, its scripts and styles at `/console/`.

They need no key, for they hold no data. Each is compressed once, and read again when it changes.
"""

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent.parent / "console"
PAGE = "index.html"
PREFIX = "/console/"
EMBED = "embed.js"
"""The chat for pages of other sites: at `/embed.js`, since they name its address."""

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_COMPRESSED = {".woff2"}
"""Compressed already."""
_IMPORT_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)
_POLICY = (
    "default-src 'none'; script-src 'self' '{import_map}'; style-src 'self'; "
    "img-src 'self' data: blob:; font-src 'self'; media-src 'self' blob:; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def _names() -> frozenset[str]:
    """Return the names of all served files, relative to the folder."""
    return frozenset(
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*")
        if path.suffix in _MEDIA_TYPES and path.name not in {PAGE, EMBED}
    )


CONSOLE_FILES = _names()
CONSOLE_PATHS = frozenset(("/", f"/{EMBED}", *(PREFIX + name for name in CONSOLE_FILES)))
"""The paths of the page and its files."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is sent; `version` is its modification time and size."""

    version: tuple[int, int]
    body: bytes
    compressed: bytes | None
    headers: dict[str, str]


_read_files: dict[str, _File] = {}


def console_response(request: Request, name: str) -> Response:
    """Return the response with the file `name`, which is `PAGE` or one of `CONSOLE_FILES`.

    A browser asks each time whether its copy is current, and is answered 304 without a body.
    """
    file = _current(name)
    if file.headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=file.headers)
    is_compressed = file.compressed is not None and "gzip" in request.headers.get(
        "accept-encoding", ""
    )
    body = file.compressed if file.compressed is not None and is_compressed else file.body
    coding = {"Content-Encoding": "gzip"} if is_compressed else {}
    return Response(body, headers=file.headers | coding)


def _current(name: str) -> _File:
    path = FOLDER / name
    status = path.stat()
    version = (status.st_mtime_ns, status.st_size)
    file = _read_files.get(name)
    if file is None or file.version != version:
        file = _read_files[name] = _read(path, version)
    return file


def _read(path: Path, version: tuple[int, int]) -> _File:
    body = path.read_bytes()
    headers = {
        "Content-Type": _MEDIA_TYPES[path.suffix],
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:20]}"',
        "Vary": "Accept-Encoding",
    }
    if path.name == PAGE:
        headers |= _page_headers(body.decode())
    elif path.name == EMBED:
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    compressed = None if path.suffix in _COMPRESSED else gzip.compress(body, mtime=0)
    return _File(version, body, compressed, headers)


def _page_headers(html: str) -> dict[str, str]:
    """Return the page's policies; its one inline script, the import map, is allowed by its hash."""
    import_map = _IMPORT_MAP.search(html)
    if import_map is None:
        raise ValueError("the console's page has no import map")
    digest = base64.b64encode(hashlib.sha256(import_map[1].encode()).digest()).decode()
    return {
        "Content-Security-Policy": _POLICY.format(import_map=f"sha256-{digest}"),
        "Permissions-Policy": "microphone=(self)",
    }

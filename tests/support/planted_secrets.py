"""Secrets that every server of the suite is given, and the search for them in all that it shows.

A plugin of pytest, which `conftest.py` registers. Its hooks search what applications in this
process log; everything else is searched by whoever has it: `search`. One hit fails the run at its
end. All loggers of the server are at DEBUG meanwhile.

A planted secret holds `MARK` and its name. Both are letters, digits and hyphens, so that escaping
for a URL, JSON, SQL or a shell leaves them alone; base64 and hexadecimal digits are read back.
"""

import logging
import os
import re
import ssl
import time
import zlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from tests.support import documented_statuses
from tests.support.worker_processes import hand_over, handed_over, is_controller, is_worker

MARK = "c4nary-"

PROVIDER_KEY = f"sk-{MARK}provider-key-77aa01"
HEARING_KEY = f"sk-{MARK}hearing-key-41c8"
SPEAKING_KEY = f"sk-{MARK}voice-key-b05e"
URL_PASSWORD = f"{MARK}url-password-3d"
PROXY_PASSWORD = f"{MARK}proxy-password-9e"
DATABASE_PASSWORD = f"{MARK}database-password-\"/%é+ 5c'\\"
ADMIN_KEY = f"{MARK}admin-key-6b1f0a-0123456789"
JWT_SECRET = f"{MARK}jwt-secret-91c2-0123456789abcdef"
PROVIDER_WORDS = f"{MARK}provider-words"
TOOL_SECRET = f"{MARK}tool-secret-2d71c0"
IDEMPOTENCY_KEY = f"{MARK}idempotency-key-f06"
SAID = f"{MARK}said"
METADATA = f"{MARK}metadata-e75"

SETTINGS = {
    "LOG_LEVEL": "debug",
    "ADMIN_API_KEY": ADMIN_KEY,
    "SUPABASE_URL": "http://127.0.0.1:9",
    "SUPABASE_JWT_SECRET": JWT_SECRET,
    "STT_API_KEY": HEARING_KEY,
    "TTS_API_KEY": SPEAKING_KEY,
    "HTTP_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
}
"""What a server in a process of its own is given, besides what its test needs."""


class Place(StrEnum):
    """Where a secret may turn up."""

    LOG = "log"
    ANSWER = "answer"
    REFUSAL = "refusal"
    """An answer of status 400 and more."""
    MAKING = "answer that makes a key"
    DATABASE = "database"


_MAY_BE = {
    "idempotency-key": {Place.DATABASE},
    "said": {Place.ANSWER, Place.DATABASE},
    "metadata": {Place.ANSWER, Place.DATABASE},
    "words of a conversation": {Place.ANSWER, Place.MAKING, Place.DATABASE},
    "key": {Place.MAKING},
    "client secret": {Place.MAKING},
    "session token": {Place.MAKING},
    "signing secret": {Place.MAKING},
}
"""By name; nowhere where a name is not here. No two begin alike: SQLite's pages cut names off."""
_PLANTED = re.compile(MARK.encode() + rb"([a-z]+(?:-(?:code|key|password|secret|token|words))?)")
_MADE = {
    "key": re.compile(rb"ap_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}"),
    "client secret": re.compile(rb"ek_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}"),
    "session token": re.compile(rb"st_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}"),
    "signing secret": re.compile(rb"whsec_[0-9A-Za-z+/]{43}="),
    "admin key of the first start": re.compile(rb"ap_admin_[\w-]{43}"),
    "token of a user": re.compile(rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),
    # What the stand-ins for models say, and what agents are told, in most of the tests.
    "words of a conversation": re.compile(
        rb"Hello there!|How can I help you today|What time is it\?|What is the weather like today"
        rb"|Be brief\.|Answer in one short sentence|You are Ada\b"
    ),
}
_BEGINNINGS = (
    MARK, "ap_", "ek_", "st_", "whsec_", "eyJ", "Hello there!", "How can I help", "What time is",
    "What is the w", "Be brief.", "Answer in one", "You are Ada",
)  # fmt: skip
"""Whatever is searched for begins with one of these."""
_IN_HEXADECIMAL = [beginning.encode().hex().encode() for beginning in _BEGINNINGS]
_IN_BASE64 = [
    # Without the characters that also depend on what stands before and behind.
    b2a_base64(bytes(before) + beginning.encode())[
        (before * 8 + 5) // 6 : (before + len(beginning)) * 8 // 6
    ]
    for beginning in _BEGINNINGS
    for before in range(3)
]
"""How each of them looks in base64: all that is encoded is decoded only where one is found."""
_BASE64 = re.compile(rb"[0-9A-Za-z+/_-]{18,}")
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_HEXADECIMAL = re.compile(rb"[0-9a-f]{24,}")
_LARGE_BYTES = 4096
_PAGE_BYTES, _LOG_HEAD_BYTES, _FRAME_HEAD_BYTES = 4096, 32, 24
_LOG_MAGIC = b"\x37\x7f\x06"
_GONE = 410
_MAKES_KEYS = re.compile(
    r"/keys|/keys/[^/]+/rotate|/sessions/[^/]+/tokens|/tools(/import)?|/v1/realtime/client_secrets"
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A secret where it does not belong."""

    secret: str
    place: Place
    where: str
    test: str


is_on = False
"""True where somebody reads `hits`: not in benchmarks."""
hits: list[Hit] = []
_searched: dict[Place, tuple[int, int]] = {}
"""Pieces and bytes."""
_seconds = 0.0
_known: set[tuple[Place, int]] = set()
"""Hashes of large pieces that were searched."""


def search(place: Place, text: str | bytes, where: str = "", *, test: str | None = None) -> None:
    """Look for every secret in `text`, plain and encoded; one that may not be there is a hit."""
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if not is_on or not data:
        return
    global _seconds  # noqa: PLW0603  # as above
    began_at = time.thread_time()
    pieces, size = _searched.get(place, (0, 0))
    _searched[place] = (pieces + 1, size + len(data))
    test = test or os.environ.get("PYTEST_CURRENT_TEST", "outside of tests")
    found = {name for view in _views(data) for name in _secrets_in(view)}
    wrong = [name for name in sorted(found) if place not in _MAY_BE.get(name, ())]
    hits.extend(Hit(secret, place, where, test) for secret in wrong)
    _seconds += time.thread_time() - began_at


def _views(data: bytes) -> Iterator[bytes]:
    yield data
    if b"%" in data:
        yield unquote_to_bytes(data.replace(b"+", b" "))
    runs = b"\n".join(_BASE64.findall(data)).translate(_TO_STANDARD)
    if any(characters in runs for characters in _IN_BASE64):
        for start in range(4):  # it may be part of something longer
            yield b"\n".join(_from_base64(run[start:]) for run in runs.split())
    if any(digits in data for digits in _IN_HEXADECIMAL):
        found = [run.decode() for run in _HEXADECIMAL.findall(data)]
        yield b"\n".join(bytes.fromhex(run[: len(run) // 2 * 2]) for run in found)


def _whole(name: str) -> str:
    """Return the name that a secret was given, which may be cut off."""
    beginnings = [known for known in _MAY_BE if known.startswith(name)]
    return beginnings[0] if beginnings else name


def _from_base64(run: bytes) -> bytes:
    whole = run[:-1] if len(run) % 4 == 1 else run
    return a2b_base64(whole + b"=" * (-len(whole) % 4))


def _secrets_in(view: bytes) -> Iterator[str]:
    for found in _PLANTED.finditer(view):
        yield _whole(found[1].decode())
    for name, pattern in _MADE.items():
        if pattern.search(view):
            yield name


def search_answer(
    method: str, path: str, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Look into an answer of HTTP, its headers too; its status is noted."""
    documented_statuses.note(method, path, status)
    place = Place.ANSWER
    if status >= 400 and status != _GONE:  # a spoken answer's text instead of its audio
        place = Place.REFUSAL
    elif method == "POST" and _MAKES_KEYS.fullmatch(path):
        place = Place.MAKING
    lines = b"\n".join(name + b": " + value for name, value in headers)
    where = f"{method} {path}: {status}"
    if len(body) > _LARGE_BYTES:  # the same history, or the same file, again
        body = b"" if _is_known(place, body) else body
    search(place, lines + b"\n\n" + body, where)


def _is_known(place: Place, data: bytes) -> bool:
    """Return whether the same was searched before, in the same kind of place."""
    key = (place, hash(data))
    is_known = key in _known
    _known.add(key)
    return is_known


def search_sqlite(folder: Path) -> None:
    """Look into the files of SQLite databases, also at rows that were deleted.

    Each page is searched once, for most are of the migrated file that every database begins as.
    """
    if not is_on:
        return
    for path in sorted(folder.glob("*.db*")):
        data = path.read_bytes()
        # In a log (`-wal`) 24 bytes stand before each page, and 32 before the first of them.
        is_log = data[:3] == _LOG_MAGIC
        head, gap = (_LOG_HEAD_BYTES, _FRAME_HEAD_BYTES) if is_log else (0, 0)
        starts = range(head, len(data), gap + _PAGE_BYTES)
        pages = (data[start + gap : start + gap + _PAGE_BYTES] for start in starts)
        new = [page for page in pages if not _is_known(Place.DATABASE, page)]
        search(Place.DATABASE, b"".join(new), path.name)


def watched(app: ASGIApp) -> ASGIApp:
    """Return the application, whose answers are searched when they end or break off."""

    async def watched_app(scope: Scope, receive: Receive, send: Send) -> None:
        status, body = 0, bytearray()
        headers: list[tuple[bytes, bytes]] = []

        async def keep(message: Message) -> None:
            nonlocal status, headers, body
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            body += message.get("body", b"")
            await send(message)

        try:
            await app(scope, receive, keep)
        finally:
            decoded = _decoded(dict(headers), bytes(body))
            search_answer(scope["method"], scope["path"], status, headers, decoded)

    return watched_app


class WatchedTransport(httpx2.HTTPTransport):
    """How a client of a real server sends: the answers are searched when they are closed."""

    def __init__(self) -> None:
        """Speak plain HTTP: reading the machine's certificates takes longer than a turn."""
        super().__init__(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    @override
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        stream = _WatchedStream(request, response)
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=stream,
            extensions=response.extensions,
        )


class _WatchedStream(httpx2.SyncByteStream):
    def __init__(self, request: httpx2.Request, response: httpx2.Response) -> None:
        self._request = request
        self._response = response
        self._body = bytearray()

    @override
    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._response.stream, httpx2.SyncByteStream)
        for piece in self._response.stream:
            self._body += piece
            yield piece

    @override
    def close(self) -> None:
        self._response.close()
        request, response = self._request, self._response
        search_answer(
            request.method,
            request.url.path,
            response.status_code,
            response.headers.raw,
            _decoded(dict(response.headers.raw), bytes(self._body)),
        )


def _decoded(headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    """Return a body as the client reads it."""
    names = {name.lower(): value for name, value in headers.items()}
    if names.get(b"content-encoding") != b"gzip":
        return body
    return zlib.decompressobj(wbits=31).decompress(body)


def turn_on() -> None:
    """Search from now on, and let the server in this process log all that it can."""
    global is_on  # noqa: PLW0603  # as a plugin's state is
    is_on = True
    logging.getLogger("app").setLevel(logging.DEBUG)


def pytest_configure(config: pytest.Config) -> None:
    if not is_controller(config):
        turn_on()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, text in report.sections:
        if name.endswith(report.when or ""):  # the reports of later phases have it, too
            search(Place.LOG, text, name, test=report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if is_worker(session.config):
        found = [(hit.secret, hit.place.value, hit.where, hit.test) for hit in hits]
        sizes = [(place.value, *size) for place, size in _searched.items()]
        hand_over(session.config, "planted secrets", (found, sizes, _seconds))
    if hits and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take over what a worker process found."""
    global _seconds  # noqa: PLW0603  # as above
    found, sizes, seconds = handed_over(node, "planted secrets")
    hits.extend(Hit(secret, Place(place), where, test) for secret, place, where, test in found)
    for place, pieces, size in sizes:
        other_pieces, other_size = _searched.get(Place(place), (0, 0))
        _searched[Place(place)] = (other_pieces + pieces, other_size + size)
    _seconds += seconds


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("planted secrets")
    for line in summary():
        terminalreporter.line(line)


def summary() -> Iterator[str]:
    """Say what was searched, and every secret that was found."""
    for place, (pieces, size) in sorted(_searched.items()):
        yield f"{place}: {pieces:,} pieces, {size / 1e6:,.2f} MB"
    for hit in dict.fromkeys(hits):
        yield f"HIT: {hit.secret} in {hit.place} ({hit.where}), {hit.test}"
    yield f"{len(hits)} hits; searching took {_seconds:.1f} s of CPU"

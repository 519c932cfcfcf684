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
import time
from binascii import a2b_base64
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

MARK = "c4nary-"

PROVIDER_KEY = f"sk-{MARK}provider-key-77aa01"
HEARING_KEY = f"sk-{MARK}hearing-key-41c8"
SPEAKING_KEY = f"sk-{MARK}speaking-key-b05e"
URL_PASSWORD = f"{MARK}url-password-3d"
PROXY_PASSWORD = f"{MARK}proxy-password-9e"
DATABASE_PASSWORD = f"{MARK}database-password-\"/%é+ 5c'\\"
ADMIN_KEY = f"{MARK}admin-key-6b1f0a-0123456789"
JWT_SECRET = f"{MARK}jwt-secret-91c2-0123456789abcdef"
PROVIDER_WORDS = f"{MARK}provider-words"
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
    "session token": {Place.MAKING},
}
"""By name; nowhere where a name is not here."""
_PLANTED = re.compile(MARK.encode() + rb"([a-z]+(?:-(?:key|password|secret|words))?)")
_MADE = {
    "key": re.compile(rb"ap_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}"),
    "session token": re.compile(rb"st_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}"),
    "admin key of the first start": re.compile(rb"ap_admin_[\w-]{43}"),
    "token of a user": re.compile(rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),
    # What the stand-ins for models say, and what agents are told, in most of the tests.
    "words of a conversation": re.compile(
        rb"Hello there!|How can I help you today|What time is it\?|What is the weather like today"
        rb"|Be brief\.|Answer in one short sentence|You are Ada\b"
    ),
}
_BASE64 = re.compile(rb"[0-9A-Za-z+/_-]{18,}")
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_HEXADECIMAL = re.compile(rb"[0-9a-f]{24,}")
_MAKES_KEYS = re.compile(r"/keys|/keys/[^/]+/rotate|/sessions/[^/]+/tokens")


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


def search(place: Place, text: str | bytes, where: str = "", *, test: str | None = None) -> None:
    """Look for every secret in `text`, plain and encoded; one that may not be there is a hit."""
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if not is_on or not data:
        return
    global _seconds  # noqa: PLW0603  # as above
    began_at = time.perf_counter()
    pieces, size = _searched.get(place, (0, 0))
    _searched[place] = (pieces + 1, size + len(data))
    test = test or os.environ.get("PYTEST_CURRENT_TEST", "outside of tests")
    found = {name for view in _views(data) for name in _secrets_in(view)}
    wrong = [name for name in sorted(found) if place not in _MAY_BE.get(name, ())]
    hits.extend(Hit(secret, place, where, test) for secret in wrong)
    _seconds += time.perf_counter() - began_at


def _views(data: bytes) -> Iterator[bytes]:
    yield data
    if b"%" in data:
        yield unquote_to_bytes(data.replace(b"+", b" "))
    runs = [run.translate(_TO_STANDARD) for run in _BASE64.findall(data)]
    for start in range(4):  # it may be part of something longer
        yield b"\n".join(_from_base64(run[start:]) for run in runs)
    digits = [run.decode() for run in _HEXADECIMAL.findall(data)]
    yield b"\n".join(bytes.fromhex(run[: len(run) // 2 * 2]) for run in digits)


def _from_base64(run: bytes) -> bytes:
    whole = run[:-1] if len(run) % 4 == 1 else run
    return a2b_base64(whole + b"=" * (-len(whole) % 4))


def _secrets_in(view: bytes) -> Iterator[str]:
    for found in _PLANTED.finditer(view):
        yield found[1].decode()
    for name, pattern in _MADE.items():
        if pattern.search(view):
            yield name


def search_answer(
    method: str, path: str, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Look into an answer of HTTP, its headers too."""
    place = Place.ANSWER
    if status >= 400:
        place = Place.REFUSAL
    elif method == "POST" and _MAKES_KEYS.fullmatch(path):
        place = Place.MAKING
    lines = b"\n".join(name + b": " + value for name, value in headers)
    search(place, lines + b"\n\n" + body, f"{method} {path}: {status}")


def search_sqlite(folder: Path) -> None:
    """Look into the files of SQLite databases, also at rows that were deleted."""
    for path in sorted(folder.glob("*.db*")):
        search(Place.DATABASE, path.read_bytes(), path.name)


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
            search_answer(scope["method"], scope["path"], status, headers, bytes(body))

    return watched_app


class WatchedTransport(httpx2.HTTPTransport):
    """How a client of a real server sends: the answers are searched when they are closed."""

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
            bytes(self._body),
        )


def turn_on() -> None:
    """Search from now on, and let the server in this process log all that it can."""
    global is_on  # noqa: PLW0603  # as a plugin's state is
    is_on = True
    logging.getLogger("app").setLevel(logging.DEBUG)


def pytest_configure() -> None:
    turn_on()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, text in report.sections:
        if name.endswith(report.when or ""):  # the reports of later phases have it, too
            search(Place.LOG, text, name, test=report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hits and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("canaries")
    for line in summary():
        terminalreporter.line(line)


def summary() -> Iterator[str]:
    """Say what was searched, and every secret that was found."""
    for place, (pieces, size) in sorted(_searched.items()):
        yield f"{place}: {pieces:,} pieces, {size / 1e6:,.2f} MB"
    for hit in dict.fromkeys(hits):
        yield f"HIT: {hit.secret} in {hit.place} ({hit.where}), {hit.test}"
    yield f"{len(hits)} hits in {_seconds:.1f} s of searching"

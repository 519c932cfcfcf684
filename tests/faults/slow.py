"""Very many clients that send or read too slowly, beside a few that talk as ever."""

import asyncio
import resource
import socket
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketStream

from tests.faults.checks import compare, figures, unexpected
from tests.faults.load import load
from tests.faults.recorder import Recorder, recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import Server, platform

CLIENTS = 10
READERS_SHARE = 0.01
DRIP_SECONDS = 1
OPENING_SECONDS = 0.008
"""Between two connections: what is measured is their end, not a rush of them."""
READER_SECONDS = 24
CUT_SECONDS = {"silent": 20, "headers": 20, "body": 26, "reader": 36}
"""The deadline of each, and some time for a machine that is busy."""
LONG_MESSAGE = "x" * 190_000
LONG_MESSAGES = 24
"""Together more than the buffers of a connection hold; an answer quotes only the beginning."""
HEALTHY_SECONDS = 2.0

_HEAD = b"POST /messages/text HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@dataclass(slots=True)
class Slow:
    """What became of the slow ones."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: Counter[str] = field(default_factory=Counter[str])


async def slow_peers(plan: Plan) -> Report:
    """Open slow connections of each kind; all are cut in time, and nobody else notices."""
    name = "slow"
    count = plan.rounds(250, 2000)
    _allow_many_files()
    async with (
        reporting(name, plan) as report,
        platform(postgres=False) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.01)
        (server,) = broken.servers
        async with recorder(broken.urls, plan.seed, "long-messages") as filling:
            long_session = await _fill(filling)
        requests = {
            "silent": b"",
            "headers": b"GET /sessions HTTP/1.1\r\n",
            "body": _HEAD + b"Content-Length: 100000\r\n\r\n{",
            "reader": f"GET /sessions/{long_session} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode(),
        }
        slow = Slow()
        readers = max(1, round(count * READERS_SHARE))
        kinds = ["reader"] * readers + ["silent", "headers", "body"] * ((count - readers) // 3)
        async with load(book, CLIENTS) as talking:
            async with anyio.create_task_group() as group:
                for kind in kinds:
                    group.start_soon(_be_slow, server, kind, requests[kind], slow)
                    await anyio.sleep(OPENING_SECONDS)
            report.add(await talking.settle(CUT_SECONDS["reader"]))
        _judge(report, slow, len(kinds))
        report.add(await compare(book, broken))
        report.add(unexpected(book, set(), may_break=False))
        seconds = [told.seconds for message in book.messages for told in message.told]
        median = statistics.median(seconds)
        report.require(
            is_so=median <= HEALTHY_SECONDS, otherwise=f"an answer took {median:.1f} s (median)"
        )
        report.figures = figures(
            book,
            slow=len(kinds),
            cut_seconds={kind: round(max(each), 1) for kind, each in slow.seconds.items()},
            answered=dict(slow.answers),
            healthy_median_seconds=round(median, 2),
            healthy_slowest_seconds=round(max(seconds), 2),
        )
    return report


def _allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _fill(book: Recorder) -> str:
    """Make a session whose history is longer than what a connection buffers."""
    session_id = await book.open_session(await book.make_agent())
    for _ in range(LONG_MESSAGES):
        message = book.compose(session_id, streams=False)
        message.content += f" {LONG_MESSAGE}"
        await book.insist(message)
    return session_id


async def _be_slow(server: Server, kind: str, request: bytes, slow: Slow) -> None:
    begun_at = time.monotonic()
    try:
        with anyio.move_on_after(CUT_SECONDS[kind] + 5):
            if kind == "reader":
                end = await _read_late(server, request)
            else:
                end = await _send_slowly(server, kind, request)
            slow.answers[f"{kind} {end}"] += 1
    except OSError as error:
        slow.answers[f"{kind} {type(error).__name__}"] += 1
    slow.seconds[kind].append(time.monotonic() - begun_at)


async def _send_slowly(server: Server, kind: str, request: bytes) -> str:
    """Send a byte now and then until the server has enough; return how it said so."""
    status = "cut"
    stream = await anyio.connect_tcp("127.0.0.1", server.port)
    try:
        async with stream, anyio.create_task_group() as group:
            if request:
                await stream.send(request)
                group.start_soon(_drip, stream, b"X-Slow: 1\r\n" if kind == "headers" else b" ")
            while True:
                data = await stream.receive()
                if data.startswith(b"HTTP/1.1 "):
                    status = data[9:12].decode()
    except* (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    return status


async def _read_late(server: Server, request: bytes) -> str:
    """Read nothing until the server must have lost its patience, then all that there is."""
    loop = asyncio.get_running_loop()
    with socket.socket() as reader:
        reader.setblocking(False)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(reader, ("127.0.0.1", server.port))
        await loop.sock_sendall(reader, request)
        await anyio.sleep(READER_SECONDS)
        received = 0
        try:
            while data := await loop.sock_recv(reader, 65536):
                received += len(data)
        except ConnectionResetError:
            return "cut"
    is_whole = received > LONG_MESSAGES * len(LONG_MESSAGE)
    return "whole" if is_whole else "cut"


async def _drip(stream: SocketStream, piece: bytes) -> None:
    while True:
        await anyio.sleep(DRIP_SECONDS)
        await stream.send(piece)


def _judge(report: Report, slow: Slow, count: int) -> None:
    for kind, each in slow.seconds.items():
        late = [seconds for seconds in each if seconds > CUT_SECONDS[kind]]
        report.require(
            is_so=not late,
            otherwise=f"{len(late)} of {len(each)} {kind} were cut after {max(each):.0f} s",
        )
    report.require(is_so=sum(slow.answers.values()) == count, otherwise=f"told {slow.answers}")
    allowed = {"silent cut", "headers cut", "body 408", "reader cut"}
    others = {words: n for words, n in slow.answers.items() if words not in allowed}
    report.require(is_so=not others, otherwise=f"slow ones were told {others}")

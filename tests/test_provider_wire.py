"""The thin HTTP client, against a server that says exactly the bytes it is told to."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from app.services.provider_http.base_url import BaseUrl
from app.services.provider_http.connection import NotHttpError
from app.services.provider_http.http1_pool import Http1Pool, Upload

pytestmark = pytest.mark.anyio


class Scripted:
    """Answers each request with the next of `answers`, and hangs up where it is told to."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.hangs_up = False
        self.reads_bytes = 1
        """How much of a request it takes before it answers."""
        self.reads_on = False
        """Whether it waits after its answers until the client leaves."""
        self.connections = 0
        self.requests: list[bytes] = []
        self.was_left = anyio.Event()

    async def serve(self, stream: SocketStream) -> None:
        self.connections += 1
        async with stream:
            while self.answers:
                request = b""
                try:
                    while len(request.partition(b"\r\n\r\n")[2]) < self.reads_bytes:
                        request += await stream.receive()
                except anyio.EndOfStream:
                    return
                self.requests.append(request)
                await stream.send(self.answers.pop(0))
                if self.hangs_up:
                    return
            while self.reads_on:
                try:
                    await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    self.was_left.set()
                    return


@pytest.fixture
def server() -> Scripted:
    return Scripted()


@pytest.fixture
async def url(server: Scripted) -> AsyncIterator[BaseUrl]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610  # no Django
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        yield BaseUrl(f"http://127.0.0.1:{port}/v1?version=1")
        group.cancel_scope.cancel()


@pytest.fixture
async def pool(url: BaseUrl) -> AsyncIterator[Http1Pool]:
    pool = Http1Pool(url, {"Authorization": "Bearer k"}, 5)
    yield pool
    pool.close()


async def answer(pool: Http1Pool, request: bytes | Upload = b"{}") -> tuple[int, bytes]:
    deadline = asyncio.get_running_loop().time() + 10
    response = await pool.post("chat", request, deadline)
    body = b""
    while piece := await response.read_any(deadline):
        body += piece
    response.close()
    return response.status, body


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def test_connection_is_kept_and_request_is_whole(server: Scripted, pool: Http1Pool) -> None:
    server.answers = [OK, OK, OK]

    assert [await answer(pool) for _ in range(3)] == [(200, b"hi")] * 3

    assert server.connections == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /v1/chat?version=1 HTTP/1.1"
    assert b"Authorization: Bearer k" in head.split(b"\r\n")
    assert b"Content-Length: 2" in head.split(b"\r\n")
    assert body == b"{}"


async def test_kept_connection_that_was_closed_is_replaced(
    server: Scripted, pool: Http1Pool
) -> None:
    server.answers = [OK, OK]
    server.hangs_up = True

    assert await answer(pool) == (200, b"hi")
    assert await answer(pool) == (200, b"hi")

    assert server.connections == 2


@pytest.mark.parametrize("first", [[], [OK]], ids=["new connection", "kept connection"])
async def test_server_that_is_silent_is_given_up_and_hung_up_on(
    first: list[bytes], server: Scripted, pool: Http1Pool
) -> None:
    server.answers = [*first, b""]  # then it reads on, until we hang up
    server.reads_on = True
    for _ in first:
        assert await answer(pool) == (200, b"hi")

    with pytest.raises(TimeoutError):
        await pool.post("chat", b"{}", asyncio.get_running_loop().time() + 0.05)

    with anyio.fail_after(60):
        await server.was_left.wait()


async def test_body_that_stops_is_given_up(server: Scripted, pool: Http1Pool) -> None:
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhi"]
    server.reads_on = True
    loop = asyncio.get_running_loop()
    response = await pool.post("chat", b"{}", loop.time() + 10)

    assert await response.read_any(loop.time() - 1) == b"hi"  # what has come is never too late
    with pytest.raises(TimeoutError):
        await response.read_any(loop.time() + 0.05)

    response.close()
    with anyio.fail_after(60):
        await server.was_left.wait()


@pytest.fixture
async def lookups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where host names lead, one for each lookup."""
    places: list[tuple[str, int]] = []

    async def getaddrinfo(*_: object, **__: object) -> object:
        await anyio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", places.pop(0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return places


async def test_crowd_asks_for_the_addresses_once(
    server: Scripted, url: BaseUrl, lookups: list[tuple[str, int]]
) -> None:
    server.answers, server.hangs_up = [OK] * 20, True
    lookups.append(("127.0.0.1", url.port))
    pool = Http1Pool(BaseUrl("http://provider.test/v1"), {}, 5)

    answers: list[tuple[int, bytes]] = []
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(_keep, answers, pool)
    pool.close()

    assert answers == [(200, b"hi")] * 20


async def test_host_that_has_moved_is_looked_up_again(
    server: Scripted, url: BaseUrl, lookups: list[tuple[str, int]]
) -> None:
    server.answers = [OK]
    lookups += [("127.0.0.1", 9), ("127.0.0.1", url.port)]
    pool = Http1Pool(BaseUrl("http://provider.test/v1"), {}, 5)

    with pytest.raises(ConnectionRefusedError):
        await answer(pool)
    assert await answer(pool) == (200, b"hi")
    pool.close()


async def _keep(answers: list[tuple[int, bytes]], pool: Http1Pool) -> None:
    answers.append(await answer(pool))


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s"
        % (len(gzip.compress(b"hi")), gzip.compress(b"hi")),
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhi",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000 + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;%s\r\nhi\r\n0\r\n\r\n"
        % (b"x" * 500_000),
    ],
    ids=[
        "continue",
        "chunked",
        "gzip",
        "to the end of the connection",
        "much before it",
        "much beside it",
    ],
)
async def test_every_kind_of_body_is_read(said: bytes, server: Scripted, pool: Http1Pool) -> None:
    server.answers = [said]
    server.hangs_up = True

    assert await answer(pool) == (200, b"hi")


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Name: value\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 7\r\n\r\ngarbage",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["another protocol", "endless headers", "not gzip", "not chunked"],
)
async def test_what_is_no_http_is_said_to_be_none(
    said: bytes, server: Scripted, pool: Http1Pool
) -> None:
    server.answers = [said]
    server.hangs_up = True

    with pytest.raises(NotHttpError):
        await answer(pool)


async def test_body_that_breaks_off_is_a_connection_error(
    server: Scripted, pool: Http1Pool
) -> None:
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhi"]
    server.hangs_up = True

    with pytest.raises(ConnectionError):
        await answer(pool)


LARGE = Upload("audio/wav", (b"a" * 3_000_000, b"b" * 100, b"c" * 3_000_000))


async def test_large_upload_arrives_whole_and_its_connection_is_kept(
    server: Scripted, pool: Http1Pool
) -> None:
    server.answers = [OK, OK]
    server.reads_bytes = 6_000_100

    assert [await answer(pool, LARGE) for _ in range(2)] == [(200, b"hi")] * 2

    assert server.connections == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert b"Content-Type: audio/wav" in head.split(b"\r\n")
    assert b"Content-Length: 6000100" in head.split(b"\r\n")
    assert body == b"".join(LARGE.pieces)


async def test_answer_before_the_end_of_an_upload_is_read_and_its_connection_is_not_kept(
    server: Scripted, pool: Http1Pool
) -> None:
    server.answers = [OK, OK]

    assert await answer(pool, LARGE) == (200, b"hi")
    server.reads_bytes = 2
    assert await answer(pool) == (200, b"hi")

    assert server.connections == 2
    assert server.requests[1].endswith(b"\r\n\r\n{}")

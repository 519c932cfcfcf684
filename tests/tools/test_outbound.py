"""Requests to where users point: guarded at the socket, bounded, and clear about what was sent."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override

from app.services.outbound.addresses import Guard, parse_allowed_addresses
from app.services.outbound.bounded_handler import SLICE_BYTES, BoundedHandler
from app.services.outbound.client import GuardedClient, open_outbound
from app.services.outbound_port import (
    OutboundError,
    OutboundFailure,
    OutboundRequest,
    OutboundResponse,
)
from tests.support.http_proxy import HttpProxy
from tests.support.tool_server import Answer, ToolServer, tool_server

pytestmark = pytest.mark.anyio


class Resolver(AbstractResolver):
    """Answers with the next of `addresses` at each look-up, the last one for ever.

    Several with a comma between them are one answer.
    """

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.lookups = 0

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.lookups += 1
        answer = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in answer.split(",")
        ]

    @override
    async def close(self) -> None:
        pass


class Transport(asyncio.Transport):
    """Notes whether it is to read."""

    is_paused = False

    @override
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    @override
    def is_closing(self) -> bool:
        return False

    @override
    def pause_reading(self) -> None:
        self.is_paused = True

    @override
    def resume_reading(self) -> None:
        self.is_paused = False


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with tool_server(everywhere=True) as server:
        yield server


@pytest.fixture
async def client(server: ToolServer) -> AsyncIterator[GuardedClient]:
    async with open_outbound(Guard(parse_allowed_addresses(server.allowed))) as client:
        yield client


async def send(client: GuardedClient, url: str, **more: Any) -> OutboundResponse:
    fields = dict[str, Any](method="GET", url=url, headers={}) | more
    return await client.send(OutboundRequest(**fields))


async def failure_of(sending: Awaitable[object]) -> OutboundError:
    with pytest.raises(OutboundError) as caught:
        await sending
    return caught.value


SPELLINGS = [
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7F.0.0.1",
    "0x7f.1", "0177.0.0.1", "0177.1", "017700000001", "127.0.0.1.", "0", "0.0.0.0", "0x0", "00",
    "localhost", "LOCALHOST", "localhost.", "[::1]", "[0:0:0:0:0:0:0:1]", "[::]",
    "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:1]",
    "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]",
    "[fe80::5efe:7f00:1]", "[2a00::5efe:127.0.0.1]", "[2a00::200:5efe:7f00:1]", "[fc00::1]",
    "[fd00:ec2::254]", "[fe80::1]", "[ff02::1]", "10.0.0.1", "10.1", "0xa.1", "172.16.0.1",
    "192.168.0.1", "192.168.257", "3232235777", "169.254.169.254", "0xa9fea9fe", "2852039166",
    "0251.0376.0251.0376", "100.64.0.1", "100.100.100.200", "198.18.0.1", "192.0.0.192",
    "224.0.0.1", "255.255.255.255", "168.63.129.16", "2822734096", "\u2460\u2461\u2466.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_spelling_of_a_special_address_gets_a_connection(
    server: ToolServer, scheme: str
) -> None:
    assert len(SPELLINGS) >= 51
    async with open_outbound(Guard()) as client:
        for host in SPELLINGS:
            error = await failure_of(send(client, f"{scheme}://{host}:{server.port}/x"))
            assert not error.was_sent, host
            assert error.failure in {
                OutboundFailure.ADDRESS_NOT_ALLOWED,
                OutboundFailure.UNREACHABLE,  # no resolver takes this spelling for an address
            }, host
    assert server.connections == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1"])
async def test_name_that_leads_to_a_special_address_gets_no_connection(
    server: ToolServer, address: str
) -> None:
    async with open_outbound(Guard(), resolver=Resolver(address)) as client:
        error = await failure_of(send(client, f"https://api.example.com:{server.port}/x"))

    assert error.failure is OutboundFailure.ADDRESS_NOT_ALLOWED
    assert server.connections == 0


async def test_answer_of_the_resolver_that_changes_is_checked_again(server: ToolServer) -> None:
    resolver = Resolver("127.0.0.1", "10.0.0.1", "169.254.169.254", "127.0.0.1")
    guard = Guard(parse_allowed_addresses("10.0.0.0/8:1"))
    async with open_outbound(guard, resolver=resolver) as client:
        for _ in range(4):
            error = await failure_of(send(client, f"https://flip.example:{server.port}/x"))
            assert error.failure is OutboundFailure.ADDRESS_NOT_ALLOWED
    assert resolver.lookups == 4
    assert server.connections == 0


@pytest.mark.parametrize("reuses", [True, False])
async def test_name_that_moves_from_an_allowed_address_gets_no_further_connection(
    server: ToolServer, reuses: bool
) -> None:
    """A name that is checked once and connected to later would get one."""
    resolver = Resolver("127.0.0.2", "127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0")
    guard = Guard(parse_allowed_addresses(f"127.0.0.2:{server.port}"))
    server.answer.headers["Connection"] = "close"
    url = f"http://flip.example:{server.port}/x"
    async with open_outbound(guard, resolver=resolver) as client:
        assert (await send(client, url, reuses_connections=reuses)).status == 200
        for _ in range(3):
            error = await failure_of(send(client, url, reuses_connections=reuses))
            assert error.failure is OutboundFailure.ADDRESS_NOT_ALLOWED

    assert resolver.lookups == 4
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer", ["127.0.0.1,10.0.0.1,::1", "169.254.169.254,127.0.0.1", "::1,0.0.0.0"]
)
async def test_none_of_several_addresses_gets_a_connection(server: ToolServer, answer: str) -> None:
    async with open_outbound(Guard(), resolver=Resolver(answer)) as client:
        error = await failure_of(send(client, f"https://many.example:{server.port}/x"))

    assert error.failure is OutboundFailure.ADDRESS_NOT_ALLOWED
    assert server.connections == 0


@pytest.mark.parametrize("host", SPELLINGS)
async def test_redirect_to_no_spelling_is_followed(server: ToolServer, host: str) -> None:
    async with tool_server() as redirecting:
        guard = Guard(parse_allowed_addresses(redirecting.allowed))
        # The server's headers are ASCII.
        location = f"http://{host}:{server.port}/x".encode("ascii", "replace").decode()
        redirecting.answer = Answer(307, b"", None, {"Location": location})
        async with open_outbound(guard) as client:
            response = await send(client, f"{redirecting.url}/x")

    assert response.status == 307
    assert server.connections == 0


async def test_http_goes_to_listed_addresses_alone() -> None:
    async with open_outbound(Guard(), resolver=Resolver("8.8.8.8")) as client:
        error = await failure_of(send(client, "http://api.example.com/x"))

    assert error.failure is OutboundFailure.ADDRESS_NOT_ALLOWED


async def test_listed_name_is_allowed_and_another_at_the_same_address_is_not(
    server: ToolServer,
) -> None:
    guard = Guard(parse_allowed_addresses(f"api.internal:{server.port}"))
    async with open_outbound(guard, resolver=Resolver("127.0.0.1")) as client:
        response = await send(client, f"http://api.internal:{server.port}/x")
        error = await failure_of(send(client, f"http://other.internal:{server.port}/x"))

    assert response.status == 200
    assert error.failure is OutboundFailure.ADDRESS_NOT_ALLOWED
    assert server.connections == 1


async def test_request_arrives_as_it_is(client: GuardedClient, server: ToolServer) -> None:
    url = f"{server.url}/a%2Fb/%2e%2e/c?q=%20x&e="
    response = await send(
        client, url, method="PUT", headers={"X-One": "1", "Accept-Encoding": "gzip"}, body=b"body"
    )

    assert (response.status, response.content_type) == (200, "application/json")
    (request,) = server.requests
    assert (request.method, request.target) == ("PUT", "/a%2Fb/%2e%2e/c?q=%20x&e=")
    assert request.body == b"body"
    assert request.headers["x-one"] == "1"
    assert request.headers["accept-encoding"] == "identity"
    assert "cookie" not in request.headers


async def test_cookies_and_redirects_are_not_followed(
    client: GuardedClient, server: ToolServer
) -> None:
    server.answer = Answer(headers={"Set-Cookie": "a=b; Path=/"})
    await send(client, f"{server.url}/x")
    redirect = await send(client, f"{server.url}/fail/redirect")

    assert redirect.status == 302
    assert "cookie" not in server.requests[-1].headers
    assert len(server.requests) == 2


async def test_environment_names_no_proxy(
    client: GuardedClient, server: ToolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert (await send(client, f"{server.url}/x")).status == 200


async def test_egress_proxy_gets_everything_and_decides(server: ToolServer) -> None:
    proxy = HttpProxy()
    async with (
        proxy.serving(),
        open_outbound(Guard(), proxy=f"http://127.0.0.1:{proxy.port}") as client,
    ):
        response = await send(client, f"{server.url}/x")

    assert response.status == 200
    assert [head.split(" ")[1] for head in proxy.heads] == [f"{server.url}/x"]


async def test_connections_are_reused_only_where_that_was_asked_for(
    client: GuardedClient, server: ToolServer
) -> None:
    for _ in range(3):
        await send(client, f"{server.url}/x")
    assert server.connections == 1
    for _ in range(3):
        await send(client, f"{server.url}/x", reuses_connections=False)
    assert server.connections == 4


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("close", OutboundFailure.BROKEN),
        ("reset", OutboundFailure.BROKEN),
        ("half", OutboundFailure.BROKEN),
        ("no-http", OutboundFailure.BROKEN),
        ("chunk", OutboundFailure.BROKEN),
        ("compressed", OutboundFailure.COMPRESSED),
        ("silent", OutboundFailure.TIMEOUT),
        ("slow", OutboundFailure.TIMEOUT),
    ],
)
@pytest.mark.parametrize("reuses", [True, False])
async def test_failure_after_the_request_was_sent_says_so(
    client: GuardedClient, server: ToolServer, fault: str, failure: OutboundFailure, *, reuses: bool
) -> None:
    url = f"{server.url}/fail/{fault}"
    error = await failure_of(
        send(client, url, method="POST", body=b"{}", timeout_seconds=0.5, reuses_connections=reuses)
    )

    assert (error.failure, error.was_sent) == (failure, True)
    assert len(server.requests) == 1
    assert "127.0.0.1" not in str(error)


async def test_refused_connection_was_not_sent() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with open_outbound(Guard(parse_allowed_addresses(f"127.0.0.1:{port}"))) as client:
        error = await failure_of(send(client, f"http://127.0.0.1:{port}/x"))

    assert (error.failure, error.was_sent) == (OutboundFailure.UNREACHABLE, False)


async def test_wrong_certificate_was_not_sent(server: ToolServer) -> None:
    async with open_outbound(Guard(parse_allowed_addresses(server.allowed))) as client:
        error = await failure_of(send(client, f"https://127.0.0.1:{server.port}/x"))

    assert (error.failure, error.was_sent) == (OutboundFailure.UNREACHABLE, False)
    assert server.requests == []


async def test_name_that_does_not_exist_was_not_sent() -> None:
    async with open_outbound(Guard()) as client:
        error = await failure_of(send(client, "https://no-such-host.invalid/x"))

    assert (error.failure, error.was_sent) == (OutboundFailure.UNREACHABLE, False)


async def test_body_is_read_up_to_the_limit(client: GuardedClient, server: ToolServer) -> None:
    whole = await send(client, f"{server.url}/x", max_bytes=12)
    cut = await send(client, f"{server.url}/x", max_bytes=11)
    endless = await send(client, f"{server.url}/fail/endless", max_bytes=100_000)

    assert (len(whole.body), whole.is_truncated) == (12, False)
    assert (len(cut.body), cut.is_truncated) == (11, True)
    assert (len(endless.body), endless.is_truncated) == (100_000, True)


async def test_endless_informational_responses_are_no_answer(
    client: GuardedClient, server: ToolServer
) -> None:
    error = await failure_of(send(client, f"{server.url}/fail/informational", timeout_seconds=60))

    assert (error.failure, error.was_sent) == (OutboundFailure.BROKEN, True)


async def test_some_informational_responses_come_before_an_answer(
    client: GuardedClient, server: ToolServer
) -> None:
    answer = await send(client, f"{server.url}/fail/hints")

    assert (answer.status, answer.body) == (200, b"Done")


async def test_answer_in_tiny_chunks_is_whole(client: GuardedClient, server: ToolServer) -> None:
    answer = await send(client, f"{server.url}/fail/tiny-chunks")

    assert answer.body == b"x" * 50_000


async def test_long_answers_come_over_one_connection(
    client: GuardedClient, server: ToolServer
) -> None:
    server.answer = Answer(body=b"y" * 200_000, content_type="text/plain")

    for _ in range(3):
        answer = await send(client, f"{server.url}/x", reuses_connections=True)
        assert answer.body == server.answer.body

    assert server.connections == 1


async def test_others_have_their_turn_while_an_answer_is_parsed() -> None:
    handler = BoundedHandler(asyncio.get_running_loop())
    transport = Transport()
    handler.connection_made(transport)
    handler.set_response_params()
    chunks = 20_000

    handler.data_received(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * chunks
        + b"0\r\n\r\n"
    )

    _, payload = await handler.read()
    assert transport.is_paused
    pieces: list[int] = []
    while not payload.at_eof():
        pieces.append(len(payload.read_nowait()))
        await asyncio.sleep(0)
    assert sum(pieces) == chunks
    assert max(pieces) <= SLICE_BYTES
    assert not transport.is_paused


async def test_cancellation_breaks_the_connection_off(
    client: GuardedClient, server: ToolServer
) -> None:
    never: Callable[[], Awaitable[object]] = asyncio.Event().wait
    server.hold = never
    sending = asyncio.ensure_future(send(client, f"{server.url}/x"))
    await server.received.wait()

    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await asyncio.wait_for(server.broken.wait(), 5)

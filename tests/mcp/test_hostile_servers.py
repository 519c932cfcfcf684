"""MCP servers that do harm: what they send is bounded, and no call waits for ever."""

import asyncio
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpcore2
import mcp_types as types
import orjson
import pytest

from app.services.mcp_port import McpError, McpFailure, McpResult, McpTarget
from app.services.mcp_service.client import McpWorkerClient
from app.services.mcp_service.guarded_transport import Attempt, GuardedBackend, current_attempt
from app.services.outbound.addresses import Guard, parse_allowed_addresses
from tests.files import made
from tests.mcp.conftest import WORKSPACE, SdkServer, call_of
from tests.support.tool_server import Answer, ReceivedRequest, ToolServer, tool_server

pytestmark = pytest.mark.anyio

DISCOVERED = types.DiscoverResult(
    supported_versions=["2026-07-28"],
    capabilities=types.ServerCapabilities(tools=types.ToolsCapability()),
    result_type="complete",
    ttl_ms=0,
    cache_scope="public",
).model_dump(by_alias=True, mode="json", exclude_none=True)
TRAP = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}


def result(request: ReceivedRequest, value: dict[str, Any]) -> Answer:
    body = {"jsonrpc": "2.0", "id": request.json["id"], "result": value}
    return Answer(body=orjson.dumps(body))


def page(request: ReceivedRequest, tools: list[dict[str, Any]], cursor: str | None) -> Answer:
    listed = {"tools": tools, "resultType": "complete", "ttlMs": 0, "cacheScope": "public"}
    return result(request, listed | ({"nextCursor": cursor} if cursor else {}))


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


class Script:
    """Answers by the method of the protocol."""

    def __init__(self, **answers: Callable[[ReceivedRequest], Answer]) -> None:
        self.answers = answers
        self.methods: list[str] = []

    def __call__(self, request: ReceivedRequest) -> Answer:
        method = request.json["method"]
        self.methods.append(method)
        if method == "server/discover" and "server_discover" not in self.answers:
            return result(request, DISCOVERED)
        return self.answers[method.replace("/", "_")](request)


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with tool_server() as server:
        yield server


@pytest.fixture
async def worker(server: ToolServer) -> AsyncIterator[McpWorkerClient]:
    async with McpWorkerClient(server.allowed) as worker:
        yield worker


async def failure(worker: McpWorkerClient, target: McpTarget) -> McpError:
    with pytest.raises(McpError) as caught:
        await worker.list_tools(target, 60)
    return caught.value


def target(server: ToolServer, path: str = "/mcp") -> McpTarget:
    return McpTarget(WORKSPACE, f"{server.url}{path}")


async def test_lists_end(server: ToolServer, worker: McpWorkerClient) -> None:
    def endless(request: ReceivedRequest) -> Answer:
        return page(request, [tool(f"t{len(script.methods)}")], f"{len(script.methods)}")

    def huge(request: ReceivedRequest) -> Answer:
        return page(request, [tool("t", description="x" * 2_000_000)], None)

    def many(request: ReceivedRequest) -> Answer:
        return page(request, [tool(f"t{n}") for n in range(600)], None)

    for listing in (endless, huge, many):
        script = server.respond = Script(tools_list=listing)

        with pytest.raises(McpError) as caught:
            await worker.list_tools(target(server), 30)

        assert caught.value.failure is McpFailure.TOO_LARGE
        assert script.methods.count("tools/list") <= 20


async def test_patterns_of_servers_are_not_run(server: ToolServer, worker: McpWorkerClient) -> None:
    def call(request: ReceivedRequest) -> Answer:
        structured = {"a": "a" * 50_000 + "!"}
        return result(
            request,
            {"content": [], "structuredContent": structured, "resultType": "complete"},
        )

    server.respond = Script(
        tools_list=lambda request: page(request, [tool("trap", outputSchema=TRAP)], None),
        tools_call=call,
    )
    await worker.list_tools(target(server), 30)

    outcome = await worker.call(call_of(target(server), "trap"))

    assert isinstance(outcome, McpResult)
    assert outcome.structured["a"].endswith("!")


async def test_faults_of_connections_are_told_apart(
    server: ToolServer, worker: McpWorkerClient
) -> None:
    expected = {
        "redirect": McpFailure.REFUSED,
        "compressed": McpFailure.REFUSED,
        "error": McpFailure.INCOMPATIBLE,
        "close": McpFailure.BROKEN,
        "reset": McpFailure.BROKEN,
        "no-http": McpFailure.BROKEN,
        "endless": McpFailure.INCOMPATIBLE,
    }
    found: dict[str, McpFailure] = {}
    for fault in expected:
        with pytest.raises(McpError) as caught:
            await worker.list_tools(target(server, f"/fail/{fault}"), 30)
        found[fault] = caught.value.failure

    assert found == expected


async def test_call_that_is_cut_off_was_sent_and_is_broken(
    server: ToolServer, worker: McpWorkerClient
) -> None:
    sse = "text/event-stream"
    cut = [
        Answer(body=b'{"jsonrpc": "2.0", "id"', headers={"Content-Length": "9000"}),
        Answer(body=b"data: {", content_type=sse, headers={"Content-Length": "9000"}),
        Answer(body=b": nothing\n\n", content_type=sse),
    ]
    for answer in cut:
        server.respond = Script(tools_call=lambda _request, answer=answer: answer)

        with pytest.raises(McpError) as caught:
            await worker.call(call_of(target(server), "act", timeout_seconds=3))

        assert caught.value.failure in {McpFailure.BROKEN, McpFailure.TIMEOUT}
        assert caught.value.was_sent


async def test_answers_that_refuse_are_no_doubt(
    server: ToolServer, worker: McpWorkerClient
) -> None:
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": -32602, "message": "no such order"}}
    refusals = {
        McpFailure.UNAUTHORIZED: (Answer(401, b"", None), ""),
        McpFailure.REFUSED: (Answer(400, orjson.dumps(body)), "no such order"),
    }
    for failure, (answer, words) in refusals.items():
        server.respond = Script(tools_call=lambda _request, answer=answer: answer)

        with pytest.raises(McpError) as caught:
            await worker.call(call_of(target(server), "act"))

        assert caught.value.failure is failure
        assert caught.value.answer == words or not words
        assert "no such order" not in str(caught.value)


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
async def test_answers_with_images_may_be_larger(
    server: ToolServer, worker: McpWorkerClient, content_type: str
) -> None:
    def answer_with(*content: dict[str, Any]) -> Callable[[ReceivedRequest], Answer]:
        def answer(request: ReceivedRequest) -> Answer:
            value = result(request, {"content": content, "resultType": "complete"})
            if content_type == "application/json":
                return value
            return Answer(body=b"data: " + value.body + b"\n\n", content_type=content_type)

        return answer

    def image(size: int) -> dict[str, Any]:
        data = b64encode(made.png() + bytes(size)).decode()
        return {"type": "image", "data": data, "mimeType": "image/png"}

    text = {"type": "text", "text": "a picture"}
    long = {"type": "text", "text": "x" * 1_500_000}
    server.respond = Script(tools_call=answer_with(text, image(3_000_000), image(0)))
    outcome = await worker.call(call_of(target(server), "draw"))
    assert isinstance(outcome, McpResult)
    assert outcome.text == "a picture"
    assert [len(each) for each in outcome.images] == [3_000_000 + len(made.png()), len(made.png())]

    for refused in ((image(5_000_000),), (long,), (image(0), long)):
        server.respond = Script(tools_call=answer_with(*refused))
        with pytest.raises(McpError) as caught:
            await worker.call(call_of(target(server), "draw"))
        assert caught.value.failure is McpFailure.TOO_LARGE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_large_answers_are_refused_in_little_memory(
    server: ToolServer, legacy_server: SdkServer
) -> None:
    """10 MB cost less than 1 MB, or 2 MB where their length is not announced."""

    def status_kb(pid: int, name: str) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    def forget_peak(pid: int) -> None:
        Path(f"/proc/{pid}/clear_refs").write_text("5")

    def small_or_large(request: ReceivedRequest) -> Answer:
        size = request.json["params"]["arguments"]["characters"]
        content = [{"type": "text", "text": "x" * size}]
        return result(request, {"content": content, "resultType": "complete"})

    server.respond = Script(tools_call=small_or_large)
    async with McpWorkerClient(f"{server.allowed},{legacy_server.allowed}") as worker:
        for place, most_kb in ((target(server), 1024), (legacy_server.target(), 2048)):
            for _ in range(3):
                await worker.call(call_of(place, "large", {"characters": 10}))
            pid = worker.worker_pid or 0
            forget_peak(pid)
            before_kb = status_kb(pid, "VmRSS")

            with pytest.raises(McpError) as caught:
                await worker.call(call_of(place, "large", {"characters": 10_000_000}))

            assert caught.value.failure is McpFailure.TOO_LARGE
            assert status_kb(pid, "VmHWM") - before_kb < most_kb


async def test_messages_without_end_are_cut(server: ToolServer, worker: McpWorkerClient) -> None:
    note = b'data: {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}\n\n'
    server.respond = Script(
        tools_call=lambda _: Answer(body=note * 5000, content_type="text/event-stream")
    )

    with pytest.raises(McpError) as caught:
        await worker.call(call_of(target(server), "act"))

    assert caught.value.failure is McpFailure.TOO_LARGE


async def test_chunks_without_end_are_cut(server: ToolServer, worker: McpWorkerClient) -> None:
    async with asyncio.timeout(60):
        error = await failure(worker, target(server, "/fail/tiny-chunks"))

    assert error.failure is McpFailure.TOO_LARGE


async def test_heads_without_end_are_cut(server: ToolServer, worker: McpWorkerClient) -> None:
    error = await failure(worker, target(server, "/fail/informational"))

    assert error.failure in {McpFailure.BROKEN, McpFailure.UNREACHABLE}


async def test_names_that_no_database_keeps_are_made_ones(
    server: ToolServer, worker: McpWorkerClient
) -> None:
    information: dict[str, Any] = {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "shop\0", "version": "\0"},
    }
    script = Script(
        server_discover=lambda request: Answer(
            body=orjson.dumps(
                {
                    "jsonrpc": "2.0",
                    "id": request.json["id"],
                    "error": {"code": -32601, "message": ""},
                }
            )
        ),
        initialize=lambda request: result(request, information),
        notifications_initialized=lambda _: Answer(status=202, body=b""),
        tools_list=lambda request: page(request, [tool("act")], None),
    )
    server.respond = script

    listing = await worker.list_tools(target(server), 30)

    assert (listing.server_name, listing.server_version) == ("shop\ufffd", "\ufffd")


async def test_name_that_leads_elsewhere_at_the_second_look_up_is_not_followed(
    server: ToolServer,
) -> None:
    answers = iter((["127.0.0.1"], ["169.254.169.254", "10.0.0.1", "::1"]))

    async def flip(_host: str, _port: int) -> list[str]:
        return next(answers)

    allowed = parse_allowed_addresses(f"127.0.0.1/32:{server.port}")
    backend = GuardedBackend(Guard(allowed), "http", flip)
    attempt = Attempt(1)
    current_attempt.set(attempt)

    stream = await backend.connect_tcp("tools.example", server.port, 5)
    await stream.aclose()
    with pytest.raises(httpcore2.ConnectError):
        await backend.connect_tcp("tools.example", server.port, 5)

    assert attempt.failure is McpFailure.ADDRESS_NOT_ALLOWED

"""The worker process for MCP with real servers of the official SDK, of both eras."""

import signal
from uuid import uuid4

import anyio
import anyio.to_thread
import pytest

from app.services.mcp_port import (
    McpAnswer,
    McpError,
    McpFailure,
    McpProgress,
    McpQuestion,
    McpResult,
    McpTarget,
)
from app.services.mcp_service.client import McpWorkerClient
from tests.mcp.conftest import WORKSPACE, SdkServer, call_of, sdk_server
from tests.support.processes import is_running, send_signal
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def failure_of(worker: McpWorkerClient, target: McpTarget, *call: object) -> McpError:
    with pytest.raises(McpError) as caught:
        await worker.call(call_of(target, *call))  # pyright: ignore[reportArgumentType]  # of a test
    return caught.value


async def test_tools_of_both_eras_are_listed(worker: McpWorkerClient, sdk: SdkServer) -> None:
    listing = await worker.list_tools(sdk.target(), 30)

    assert (listing.server_name, listing.server_version) == ("trial", "1.2")
    assert listing.protocol_version in {"2026-07-28", "2025-11-25"}
    by_name = {tool.name: tool for tool in listing.tools}
    assert by_name["add"].description == "Adds two numbers."
    assert by_name["add"].parameters["required"] == ["a", "b"]
    assert by_name["add"].output_schema


async def test_each_era_is_found_out(
    worker: McpWorkerClient, modern_server: SdkServer, legacy_server: SdkServer
) -> None:
    versions = [
        (await worker.list_tools(server.target(), 30)).protocol_version
        for server in (modern_server, legacy_server)
    ]

    assert versions == ["2026-07-28", "2025-11-25"]


async def test_structured_results_are_preferred_and_errors_are_results(
    worker: McpWorkerClient, sdk: SdkServer
) -> None:
    target = sdk.target()

    added = await worker.call(call_of(target, "add", {"a": 1, "b": 2}))
    failed = await worker.call(call_of(target, "fail"))

    assert added == McpResult(is_error=False, text='{"result":3}', structured={"result": 3})
    assert isinstance(failed, McpResult)
    assert failed.is_error
    assert "fail" in failed.text


async def test_headers_go_with_every_request_and_to_no_other_caller(
    worker: McpWorkerClient, sdk: SdkServer
) -> None:
    for name in ("one", "two"):
        result = await worker.call(call_of(sdk.target(authorization=name), "headers"))
        assert isinstance(result, McpResult)
        assert result.structured["authorization"] == name
        assert result.structured["accept-encoding"] == "identity"
        assert result.structured["user-agent"] == "agent-platform"


async def test_progress_is_told(worker: McpWorkerClient, sdk: SdkServer) -> None:
    seen: list[McpProgress] = []

    await worker.call(call_of(sdk.target(), "slow", {"steps": 2}), seen.append)

    assert McpProgress(0, 2, "step 0") in seen


@pytest.mark.parametrize("action", ["accept", "decline"])
async def test_questions_are_passed_on_and_answered(
    worker: McpWorkerClient, sdk: SdkServer, action: str
) -> None:
    call_id, target = uuid4(), sdk.target()
    asked = await worker.call(call_of(target, "refund", {"what": "pay"}, id=call_id))
    assert isinstance(asked, McpQuestion)
    assert asked.message == "Really pay?"
    assert asked.form
    assert asked.form["properties"]["sure"]["type"] == "boolean"

    answer = McpAnswer(action, {"sure": True} if action == "accept" else None)
    result = await worker.call(
        call_of(target, "refund", {"what": "pay"}, id=call_id, question=asked.state, answer=answer)
    )

    assert isinstance(result, McpResult)
    assert result.is_error is (action == "decline")
    if action == "accept":
        assert result.structured == {"result": "pay: True"}


async def test_question_outlives_the_worker_where_the_server_keeps_no_session(
    worker: McpWorkerClient, modern_server: SdkServer
) -> None:
    target = modern_server.target()
    asked = await worker.call(call_of(target, "refund", {"what": "later"}))
    assert isinstance(asked, McpQuestion)
    assert worker.worker_pid
    send_signal(worker.worker_pid, signal.SIGKILL)
    await until(lambda: worker.worker_pid is None)

    answer = McpAnswer("accept", {"sure": False})
    result = await worker.call(
        call_of(target, "refund", {"what": "later"}, question=asked.state, answer=answer)
    )

    assert result == McpResult(
        is_error=False, text='{"result":"later: False"}', structured={"result": "later: False"}
    )


async def test_answer_whose_connection_is_gone_is_a_broken_call(
    worker: McpWorkerClient, legacy_server: SdkServer
) -> None:
    call_id, target = uuid4(), legacy_server.target()
    asked = await worker.call(call_of(target, "refund", {"what": "gone"}, id=call_id))
    assert isinstance(asked, McpQuestion)
    assert worker.worker_pid
    send_signal(worker.worker_pid, signal.SIGKILL)
    await until(lambda: worker.worker_pid is None)

    with pytest.raises(McpError) as caught:
        await worker.call(
            call_of(
                target,
                "refund",
                {"what": "gone"},
                id=call_id,
                question=asked.state,
                answer=McpAnswer("accept", {"sure": True}),
            )
        )

    assert (caught.value.failure, caught.value.was_sent) == (McpFailure.BROKEN, True)


async def test_cancelled_call_is_cancelled_at_the_server(
    worker: McpWorkerClient, sdk: SdkServer
) -> None:
    before = await sdk.counts()

    async def is_held() -> bool:
        return (await sdk.counts())["recorded"] > before["recorded"]

    async def is_cancelled() -> bool:
        return (await sdk.counts())["cancelled"] > before["cancelled"]

    async with anyio.create_task_group() as group:
        group.start_soon(worker.call, call_of(sdk.target(), "hold", {"note": "n"}))
        await until(is_held)
        group.cancel_scope.cancel()

    await until(is_cancelled)
    assert await worker.call(call_of(sdk.target(), "add", {"a": 1, "b": 1}))


async def test_call_that_takes_too_long_is_over(worker: McpWorkerClient, sdk: SdkServer) -> None:
    await worker.list_tools(sdk.target(), 30)

    with pytest.raises(McpError) as caught:
        await worker.call(call_of(sdk.target(), "hold", {"note": "n"}, timeout_seconds=0.5))

    assert (caught.value.failure, caught.value.was_sent) == (McpFailure.TIMEOUT, True)


async def test_ten_megabytes_are_not_read(worker: McpWorkerClient, sdk: SdkServer) -> None:
    error = await failure_of(worker, sdk.target(), "large", {"characters": 10_000_000})

    assert (error.failure, error.was_sent) == (McpFailure.TOO_LARGE, True)
    assert await worker.call(call_of(sdk.target(), "add", {"a": 1, "b": 1}))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_death_of_the_worker_fails_the_calls_in_hand_and_nothing_else(
    modern_server: SdkServer, number: signal.Signals
) -> None:
    before = await modern_server.counts()

    async def is_held() -> bool:
        return (await modern_server.counts())["recorded"] > before["recorded"]

    async def kill() -> None:
        await until(is_held)
        assert worker.worker_pid
        send_signal(worker.worker_pid, number)

    async with McpWorkerClient(modern_server.allowed, silent_seconds=2) as worker:
        errors: list[McpError] = []
        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            errors.append(await failure_of(worker, modern_server.target(), "hold", {"note": "n"}))

        [error] = errors
        assert (error.failure, error.was_sent) == (McpFailure.BROKEN, True)
        assert await worker.call(call_of(modern_server.target(), "add", {"a": 1, "b": 1}))


async def test_worker_starts_with_the_first_request_and_ends_with_the_client(
    modern_server: SdkServer,
) -> None:
    async with McpWorkerClient(modern_server.allowed) as worker:
        assert worker.worker_pid is None
        await worker.list_tools(modern_server.target(), 30)
        pid = worker.worker_pid
        assert pid

    assert not is_running(pid)


async def test_session_that_the_server_has_lost_is_opened_anew() -> None:
    with sdk_server("legacy") as server:
        async with McpWorkerClient(server.allowed) as worker:
            await worker.call(call_of(server.target(), "add", {"a": 1, "b": 1}))
            with sdk_server("legacy", await _port_after_end(server)):
                result = await worker.call(call_of(server.target(), "add", {"a": 1, "b": 2}))

    assert isinstance(result, McpResult)
    assert result.text == '{"result":3}'


async def _port_after_end(server: SdkServer) -> int:
    """End a server; return its port once it is free."""
    server.process.kill()
    await anyio.to_thread.run_sync(server.process.wait)
    return server.port


async def test_address_that_is_not_allowed_is_not_connected_to(sdk: SdkServer) -> None:
    async with McpWorkerClient("") as worker:
        for url in (sdk.url, f"https://127.0.0.1:{sdk.port}/mcp", f"https://localhost:{sdk.port}"):
            with pytest.raises(McpError) as caught:
                await worker.list_tools(McpTarget(WORKSPACE, url), 30)
            assert caught.value.failure is McpFailure.ADDRESS_NOT_ALLOWED


async def test_refused_connection_is_not_sent() -> None:
    async with McpWorkerClient("127.0.0.1:1") as worker:
        error = await failure_of(worker, McpTarget(WORKSPACE, "http://127.0.0.1:1/mcp"), "add")

    assert (error.failure, error.was_sent) == (McpFailure.UNREACHABLE, False)

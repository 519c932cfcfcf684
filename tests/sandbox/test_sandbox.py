"""The worker process for foreign bytes: what a job may do, and what becomes of the others."""

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from app.services.sandbox.errors import WorkerUnavailable
from app.services.sandbox.fair_queue import CallerKey, JobCrashed, JobOutput
from app.services.sandbox.limits import JobLimits
from app.services.sandbox.sandbox import TOTAL_AT_ONCE, Sandbox
from app.telemetry.gauges import add_worker_gauges
from app.telemetry.metrics import Metrics
from tests.support.application import AUDIO
from tests.support.processes import send_signal
from tests.support.waiting import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux confines jobs"),
]

JOBS = "tests.sandbox.jobs"
LIMITS = JobLimits(cpu_seconds=1, memory_bytes=64 << 20, output_bytes=8 << 20, wall_seconds=60)
ANNA, BOB = ("workspace", "key:anna"), ("workspace", "key:bob")
_ENDED = "SIGKILL|exit code|frame"
"""Killed by the worker, unless its process broke at what it had said."""
ROOT = AUDIO.parents[1]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def sandbox(anyio_backend: str) -> AsyncGenerator[Sandbox]:
    assert anyio_backend
    async with Sandbox([f"{JOBS}:warm_up"], LIMITS) as sandbox:
        yield sandbox


async def run(
    sandbox: Sandbox, name: str, payload: bytes = b"", caller: CallerKey = ANNA, **fields: Any
) -> JobOutput:
    with anyio.fail_after(60):
        return await sandbox.run(f"{JOBS}:{name}", fields, payload, caller)


async def gauge_of(sandbox: Sandbox, name: str) -> dict[str, float]:
    """Return the samples of a gauge of the worker, as `GET /metrics` has them."""
    metrics = Metrics()
    add_worker_gauges(metrics, None, {"uploads": sandbox})
    gauge = next(each for each in metrics.gauges if each.name == f"agent_platform_{name}")
    return {" ".join(labels): value for labels, value in gauge.read().items()}


async def test_metrics_tell_of_the_worker_its_jobs_and_its_restarts() -> None:
    async with Sandbox([f"{JOBS}:warm_up"], LIMITS) as sandbox, anyio.create_task_group() as group:
        assert await gauge_of(sandbox, "worker_process") == {
            "uploads running": 0, "uploads ready": 0
        }  # fmt: skip
        await run(sandbox, "echo")
        assert await gauge_of(sandbox, "worker_process") == {
            "uploads running": 1, "uploads ready": 1
        }  # fmt: skip
        for number in range(TOTAL_AT_ONCE + 3):
            caller = (f"workspace {number}", "key:anna")
            group.start_soon(lambda caller=caller: run(sandbox, "wait", caller=caller, seconds=60))
        await until(lambda: sandbox.waiting_count > 0)
        assert await gauge_of(sandbox, "worker_jobs") == {
            "uploads running": TOTAL_AT_ONCE, "uploads waiting": 3
        }  # fmt: skip
        assert await gauge_of(sandbox, "worker_process_restarts") == {"uploads": 0}
        group.cancel_scope.cancel()

    async with Sandbox([f"{JOBS}:warm_up"], LIMITS) as sandbox:
        await run(sandbox, "echo")
        assert sandbox.worker_pid
        send_signal(sandbox.worker_pid, signal.SIGKILL)
        await until(lambda: sandbox.restarts == 1)
        await run(sandbox, "echo")
        assert await gauge_of(sandbox, "worker_process_restarts") == {"uploads": 1}
        assert await gauge_of(sandbox, "worker_jobs") == {
            "uploads running": 0, "uploads waiting": 0
        }  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 70_000, 5_000_000])
async def test_a_job_gets_its_bytes_and_its_answer_comes_back(sandbox: Sandbox, size: int) -> None:
    payload = os.urandom(size)

    output = await run(sandbox, "echo", payload, number=7, words=["ä", None])

    assert output.payload == payload
    assert output.fields == {"number": 7, "words": ["ä", None]}


async def test_neither_the_worker_nor_a_job_has_the_servers_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = ("OPENAI_API_KEY", "DATABASE_URL", "ADMIN_API_KEY", "SOMETHING_ELSE", "HTTPS_PROXY")
    for name in secrets:
        monkeypatch.setenv(name, "a-secret")
    async with Sandbox([f"{JOBS}:warm_up"], LIMITS) as sandbox:
        output = await run(sandbox, "describe")
        of_worker = await anyio.Path(f"/proc/{sandbox.worker_pid}/environ").read_bytes()

    assert "a-secret" not in output.fields["environment"].values()
    assert {entry.partition(b"=")[0].decode() for entry in of_worker.split(b"\0")} <= {
        "",
        "PYTHONPATH", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE", "OPENBLAS_NUM_THREADS",
        "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "TZ", "LC_CTYPE",
    }  # fmt: skip


async def test_a_job_can_open_no_file_no_socket_and_no_pipe(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        output = await run(
            sandbox,
            "touch",
            server=os.getpid(),
            path=str(tmp_path / "left behind"),
            port=listener.getsockname()[1],
        )

    assert output.fields["done"] == []
    assert [path async for path in anyio.Path(tmp_path).iterdir()] == []


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("spin", {"seconds": 30}, "SIGXCPU"),
        ("allocate", {"bytes": 200 << 20}, "too much memory"),
        ("crash", {}, "SIGSEGV"),
        ("fail", {}, "no such sound"),
        ("echo_that_is_not_there", {}, "AttributeError"),
        ("chatter", {"hex": "ff" * 8}, _ENDED),
        ("chatter", {"hex": "00" * 7 + "01" + "00", "times": 2}, _ENDED),
        ("chatter", {"hex": "0000000200000000"}, _ENDED),
        ("chatter", {"hex": "00" * 4096, "times": 4096}, _ENDED),
    ],
)
async def test_a_job_that_breaks_or_is_over_a_limit_fails_alone(
    sandbox: Sandbox, name: str, fields: dict[str, Any], reason: str
) -> None:
    await run(sandbox, "echo")
    worker_pid = sandbox.worker_pid

    with pytest.raises(JobCrashed, match=reason):
        await run(sandbox, name, **fields)

    assert (await run(sandbox, "echo", b"next")).payload == b"next"
    assert sandbox.worker_pid == worker_pid


@pytest.mark.parametrize(("name", "fields"), [("stop", {}), ("wait", {"seconds": 60})])
async def test_a_job_that_does_nothing_is_ended_after_a_while(
    name: str, fields: dict[str, Any]
) -> None:
    async with Sandbox([f"{JOBS}:warm_up"], JobLimits(wall_seconds=0.5)) as sandbox:
        with pytest.raises(JobCrashed, match="too long"):
            await run(sandbox, name, **fields)
        assert (await run(sandbox, "echo", b"next")).payload == b"next"


async def test_what_a_killed_job_has_used_is_known(sandbox: Sandbox) -> None:
    with pytest.raises(JobCrashed) as crashed:
        await run(sandbox, "spin", seconds=30)

    assert 0.7 < crashed.value.cpu_seconds < 3


async def test_callers_share_no_process_and_one_caller_keeps_a_warm_one(sandbox: Sandbox) -> None:
    pids = {
        caller: {(await run(sandbox, "describe", caller=caller)).fields["pid"] for _ in range(3)}
        for caller in (ANNA, BOB, ("other", "key:anna"))
    }

    assert all(len(own) == 1 for own in pids.values())
    assert len({pid for own in pids.values() for pid in own}) == 3


async def test_a_process_is_replaced_after_a_quarter_of_a_second_of_work(sandbox: Sandbox) -> None:
    first = (await run(sandbox, "describe", caller=BOB)).fields["pid"]
    await run(sandbox, "spin", caller=BOB, seconds=0.3)

    assert (await run(sandbox, "describe", caller=BOB)).fields["pid"] != first


async def test_a_long_job_yields_to_short_ones(sandbox: Sandbox) -> None:
    short = await run(sandbox, "spin", caller=BOB, seconds=0.01)
    long = await run(sandbox, "spin", caller=BOB, seconds=0.7)

    assert long.fields["niceness"] > short.fields["niceness"]


async def test_a_killed_worker_is_started_again_and_its_jobs_are_run_once_more(
    sandbox: Sandbox,
) -> None:
    await run(sandbox, "echo")
    killed = sandbox.worker_pid
    assert killed is not None
    assert killed > 0
    answers: list[bytes] = []

    async def ask(number: int) -> None:
        caller = "workspace", f"key:{number}"
        await run(sandbox, "spin", caller=caller, seconds=0.2)
        answers.append((await run(sandbox, "echo", b"%d" % number, caller)).payload)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        send_signal(killed, signal.SIGKILL)

    assert sorted(answers) == [b"%d" % number for number in range(5)]
    assert sandbox.worker_pid != killed


async def test_a_worker_that_cannot_start_is_told_as_such() -> None:
    async with Sandbox(["tests.sandbox.jobs:not_there"], LIMITS) as sandbox:
        with pytest.raises(WorkerUnavailable):
            await run(sandbox, "echo")


async def test_a_sandbox_that_was_left_refuses_and_leaves_no_process() -> None:
    async with Sandbox([f"{JOBS}:warm_up"], LIMITS) as sandbox:
        pid = (await run(sandbox, "describe")).fields["pid"]
        worker_pid = sandbox.worker_pid
    assert worker_pid is not None

    with pytest.raises(WorkerUnavailable):
        await run(sandbox, "echo")
    await until_gone(worker_pid)
    await until_gone(pid)


async def test_nothing_is_started_before_the_first_job() -> None:
    async with Sandbox([f"{JOBS}:warm_up"], LIMITS) as sandbox:
        await anyio.wait_all_tasks_blocked()
        assert sandbox.worker_pid is None


@pytest.mark.parametrize("ticks", range(8))
def test_a_sandbox_that_is_left_while_it_starts_leaves_no_process(ticks: int) -> None:
    async def leave_early() -> None:
        async with Sandbox([f"{JOBS}:warm_up"], LIMITS) as sandbox:
            sandbox.start()
            for _ in range(ticks):
                await anyio.lowlevel.checkpoint()

    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always")
        asyncio.run(leave_early())  # `anyio.run` refuses while the fixture's loop is open
        gc.collect()
    assert not [str(warning.message) for warning in left_open]


async def test_a_cancelled_job_ends_at_once(sandbox: Sandbox) -> None:
    await run(sandbox, "echo")
    with anyio.move_on_after(0.2) as scope:
        await run(sandbox, "wait", seconds=100)
    assert scope.cancelled_caught

    with anyio.fail_after(30):
        await run(sandbox, "echo")


async def test_the_worker_and_its_jobs_die_with_their_server() -> None:
    script = f"""
import asyncio, os
from app.services.sandbox.sandbox import Sandbox
async def main():
    async with Sandbox(["{JOBS}:warm_up"]) as sandbox:
        output = await sandbox.run("{JOBS}:describe", {{}}, b"", ("a", "b"))
        print(sandbox.worker_pid, output.fields["pid"], flush=True)
        await sandbox.run("{JOBS}:wait", {{"seconds": 100}}, b"", ("a", "b"))
asyncio.run(main())
"""
    with subprocess.Popen(  # noqa: ASYNC220  # until it has written a line
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT
    ) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        server.kill()
    assert len(pids) == 2
    for pid in pids:
        await until_gone(pid)


async def until_gone(pid: int) -> None:
    """Wait until no process has this id; a zombie has ended."""
    assert pid > 0
    with anyio.fail_after(60):
        while True:
            try:
                stat = await anyio.Path(f"/proc/{pid}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return
            if stat.rpartition(")")[2].split()[0] == "Z":
                return
            await anyio.sleep(0.01)

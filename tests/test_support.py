"""What tests stand on does what they rely on."""

import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tests.support.ports import FIRST, LAST, free_port
from tests.support.processes import is_running, send_signal
from tests.support.scheduling import GROUPS, group_of
from tests.support.tools import ToolMissing, find_tool, missing_tool
from tests.support.waiting import until

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("pid", [0, 1, -1, -1234])
def test_group_of_processes_is_never_signalled(pid: int) -> None:
    with pytest.raises(AssertionError):
        send_signal(pid, signal.SIGCONT)
    with pytest.raises(AssertionError):
        is_running(pid)


def test_process_is_signalled_and_seen_to_end() -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        assert is_running(process.pid)
        send_signal(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not is_running(process.pid)


def test_two_processes_are_never_given_the_same_port() -> None:
    script = "from tests.support.ports import free_port; print(*[free_port() for _ in range(500)])"
    command = [sys.executable, "-c", f"{script}; input()"]
    with (
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as first,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as second,
    ):
        assert first.stdout
        assert second.stdout
        ports = [*first.stdout.readline().split(), *second.stdout.readline().split()]
        ports += [str(free_port()) for _ in range(500)]
        first.communicate("\n")
        second.communicate("\n")
    assert len(set(ports)) == len(ports) == 1500
    assert all(FIRST <= int(port) < LAST for port in ports)


def test_missing_tool_is_recognised_alone_and_in_groups_and_beside_no_other_error() -> None:
    missing = ToolMissing("x is not installed")
    assert missing_tool(missing) is missing
    assert missing_tool(ExceptionGroup("", [ExceptionGroup("", [missing])])) is missing
    assert missing_tool(ExceptionGroup("", [missing, ValueError()])) is None
    assert missing_tool(ValueError()) is None
    with pytest.raises(ToolMissing, match="`apt install no-such-program`"):
        find_tool("no-such-program")


def test_groups_of_tests_name_files_that_there_are() -> None:
    beginnings = [each for group in GROUPS.values() for each in group]
    assert all((ROOT / each.partition("::")[0]).is_file() for each in beginnings)
    assert group_of("tests/faults/test_faults.py::test_x[kills-sqlite]") == "other faults"
    assert group_of("tests/test_support.py::test_x") is None


@pytest.mark.anyio
async def test_waiting_ends_with_the_condition_and_names_one_that_never_holds() -> None:
    event = anyio.Event()

    async def has_come() -> bool:
        return event.is_set()

    async with anyio.create_task_group() as group:
        group.start_soon(until, has_come)
        await anyio.wait_all_tasks_blocked()
        event.set()
    await until(event.is_set)

    def never_holds() -> bool:
        return False

    with pytest.raises(TimeoutError, match="never_holds"):
        await until(never_holds, within_seconds=0.05)

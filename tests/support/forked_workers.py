"""Test processes that are forked once the tests' modules are imported, instead of started anew.

A plugin of pytest, which `conftest.py` registers. Each worker of pytest-xdist would import the
application and all test modules by itself, which takes 8 s of CPU. Here the controller imports them
and forks its workers; one that replaces a crashed worker starts as ever.
"""

import atexit
import gc
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from typing import Any, NoReturn

import pytest
from execnet import gateway_base, gateway_io
from execnet.xspec import XSpec
from typing_extensions import override

from tests.support.processes import send_signal

_WARM_SERVERS = "tests.support.warm_server"
_forked: list["_ForkedWorker"] = []
"""Those that nobody has spoken to yet."""


class _ForkedWorker(gateway_io.Popen2IOMaster):
    """A forked process as execnet knows processes: its pipes, and how it ends."""

    def __init__(self) -> None:  # its base would start a program
        """Fork it; it waits for what execnet tells every new process."""
        read, output = os.pipe()
        input_, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            for other in (read, write, *(fd for each in _forked for fd in each.descriptors)):
                os.close(other)
            _serve(input_, output)
        os.close(input_)
        os.close(output)
        self.descriptors = (read, write)

    def connect(self, execmodel: Any) -> None:  # noqa: ANN401  # execnet's own
        read, write = self.descriptors
        files = os.fdopen(write, "wb"), os.fdopen(read, "rb")
        gateway_base.Popen2IO.__init__(self, *files, execmodel)  # pyright: ignore[reportUnknownMemberType]

    @override
    def wait(self) -> int | None:
        with suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None

    @override
    def kill(self) -> None:
        with suppress(ProcessLookupError):
            send_signal(self.pid, signal.SIGKILL)


def _serve(input_: int, output: int) -> NoReturn:
    """Be a worker of execnet until it ends, and never return into the controller's code."""
    status = 1
    try:
        os.dup2(input_, 0)
        os.dup2(output, 1)
        os.close(input_)
        os.close(output)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, buffering=1, closefd=False)  # noqa: SIM115  # a descriptor
            for number, mode in enumerate("rww")
        )
        # It is a child of the controller's: nobody else may wait for it.
        forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]  # noqa: SLF001
        exec(eval(sys.stdin.readline()))  # noqa: S102, S307  # as execnet's own processes begin
        status = 0
    except BaseException:  # noqa: BLE001  # it is a process of its own
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        os._exit(status)


def _create_io(spec: XSpec, execmodel: Any) -> gateway_io.Popen2IOMaster:  # noqa: ANN401  # as above
    if not _forked:
        return _create_process(spec, execmodel)
    worker = _forked.pop(0)
    worker.connect(execmodel)
    return worker


_create_process = gateway_io.create_io


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[XSpec]) -> None:
    """Import what the workers need, and fork them, while this process has one thread."""
    if not all(spec.popen and not spec.python for spec in specs):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in _module_names(config):
            with suppress(Exception, pytest.skip.Exception):  # each worker is told again
                importlib.import_module(name)
    if _WARM_SERVERS in sys.modules:
        forkserver.ensure_running()
    gc.collect()
    gc.freeze()
    for _ in specs:
        _forked.append(_ForkedWorker())  # noqa: PERF401  # each closes the pipes of those before it
    gateway_io.create_io = _create_io


def _module_names(config: pytest.Config) -> Iterator[str]:
    for argument in config.args:
        path = config.invocation_params.dir / argument.partition("::")[0]
        found = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        for module in found:
            yield ".".join(module.resolve().relative_to(config.rootpath).with_suffix("").parts)

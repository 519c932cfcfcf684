"""Workers of pytest-xdist that are forked from the controller, in a run of their own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.server_process import ROOT

CONFTEST = """
from tests.support import forked_workers

def pytest_configure(config):
    config.pluginmanager.register(forked_workers)
"""
MODULE = """
import os
import pytest

with open("imports", "a") as file:
    file.write(f"{os.getpid()}\\n")

@pytest.mark.parametrize("number", range(8))
def test_number(number):
    with open("runs", "a") as file:
        file.write(f"{os.getpid()}\\n")
    if number == 3:
        os._exit(7)
    assert number != 5, "five is wrong"
"""


def test_workers_share_what_was_imported_and_a_crashed_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_module.py").write_text(MODULE)
    options = ["-q", "-p", "no:cacheprovider", "-p", "xdist.plugin", "-n", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert "2 failed, 6 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "five is wrong" in ran.stdout
    assert "crashed while running 'test_module.py::test_number[3]'" in ran.stdout
    importers = set((tmp_path / "imports").read_text().split())
    workers = set((tmp_path / "runs").read_text().split())
    assert len(workers) >= 2
    assert len(importers) == 2, "the controller, and the worker that came instead of the crashed"
    assert len(importers & workers) <= 1

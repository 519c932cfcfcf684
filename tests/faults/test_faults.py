"""Every row in its short form; `make faults` is the long one."""

import os
from collections.abc import Awaitable, Callable

import anyio
import pytest

from tests.faults.clocks import FaketimeMissing
from tests.faults.report import Plan, Report, any_seed
from tests.faults.rows import ROWS
from tests.postgres import PostgresMissing

SEED = int(os.environ.get("FAULTS_SEED") or any_seed())
OWN_TESTS = {"provider"}
"""Rows that pytest finds elsewhere."""


@pytest.mark.parametrize("name", [name for name in ROWS if name not in OWN_TESTS])
def test_nothing_acknowledged_is_lost_or_doubled(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row: Callable[[Plan], Awaitable[Report]] = ROWS[name]
    try:
        report = anyio.run(row, Plan(SEED))
    except (PostgresMissing, FaketimeMissing) as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))

    with capsys.disabled():
        print(f"\n{report}")  # noqa: T201  # the figures, and how to replay
    assert not report.wrongs, f"replay: {report.replay}"

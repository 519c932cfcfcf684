"""Every row in its short form; `make faults` is the long one."""

import os
from collections.abc import Awaitable, Callable

import anyio
import pytest

from tests.faults.report import Plan, Report, any_seed
from tests.faults.rows import ROWS
from tests.support.reports import FIGURES, REPLAY

SEED = int(os.environ.get("FAULTS_SEED") or any_seed())
OWN_TESTS = {"provider"}
"""Rows that pytest finds elsewhere."""


@pytest.mark.parametrize("name", [name for name in ROWS if name not in OWN_TESTS])
def test_nothing_acknowledged_is_lost_or_doubled(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    row: Callable[[Plan], Awaitable[Report]] = ROWS[name]

    report = anyio.run(row, Plan(SEED))

    record_property(FIGURES, str(report))
    record_property(REPLAY, report.replay)
    assert not report.wrongs, f"replay: {report.replay}\n{report}"

"""The provider's faults: the tests of `tests/faults_provider`, as a row of this suite."""

import os
import re
import sys

import anyio

from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import ROOT

_FIGURES = re.compile(r"^(\d.*(?:answered|passed|failed).*|open breaker: .*)$", re.MULTILINE)


async def provider_fails(plan: Plan) -> Report:
    """Run one turn for each fault, endpoint and way out, as many times as there are rounds."""
    name = "provider"
    async with reporting(name, plan) as report:
        ended = await anyio.run_process(
            [sys.executable, "-m", "pytest", "tests/faults_provider", "-qsp", "no:cacheprovider"],
            env=os.environ | {"FAULT_ROUNDS": str(plan.rounds(1, 20))},
            cwd=ROOT,
            check=False,
        )
        words = ended.stdout.decode()
        report.require(is_so=ended.returncode == 0, otherwise=words[-1500:])
        report.figures = {"told": _FIGURES.findall(words)}
    return report

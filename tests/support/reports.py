"""What a run says at its end: the figures of the fault tests, and how to repeat what failed.

A plugin of pytest, which `conftest.py` registers.
"""

import shlex

import pytest

FIGURES = "figures"
"""The property of a test that is shown at the end of the run."""
REPLAY = "replay"
"""The property of a test that holds a command which does the same again, seed and all."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for category in ("passed", "failed", "error")
        for report in terminalreporter.getreports(category)
        if isinstance(report, pytest.TestReport)
    ]
    figures = [
        str(v) for report in reports for name, v in report.user_properties if name == FIGURES
    ]
    if figures:
        terminalreporter.section("figures")
        for line in dict.fromkeys(figures):
            terminalreporter.line(line)
    commands = [_replay(report) for report in reports if report.failed]
    if commands:
        terminalreporter.section("replay")
        for line in dict.fromkeys(commands):
            terminalreporter.line(line)


def _replay(report: pytest.TestReport) -> str:
    properties = dict(report.user_properties)

    return str(properties.get(REPLAY) or f"python -m pytest {shlex.quote(report.nodeid)}")

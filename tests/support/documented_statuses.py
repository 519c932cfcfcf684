"""Every status that any test of the suite is answered with is in the API's description.

A plugin of pytest, which `conftest.py` registers: `note` is told of each answer, and one that
is documented nowhere fails the run at its end.
"""

import re
from typing import Any

import pytest

from tests.support.worker_processes import hand_over, handed_over, is_worker

Answer = tuple[str, str, int]
"""Method in small letters, path, status."""
_answers: set[Answer] = set()


def note(method: str, path: str, status: int) -> None:
    """Remember an answer; `status` is 0 where there was none."""
    _answers.add((method.lower(), path, status))


def undocumented(answers: set[Answer], paths: dict[str, Any]) -> list[str]:
    """Return the answers that `paths` of an OpenAPI document do not name."""
    templates = {path: re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for path in paths}
    found: set[str] = set()
    for method, path, status in answers:
        # What is written out comes first: `/health/live` is no `/health/{name}`.
        matching = [path] if path in paths else [
            template for template, pattern in templates.items() if pattern.fullmatch(path)
        ]  # fmt: skip
        for template in matching:
            operation = paths[template].get(method)
            if operation and status and str(status) not in operation["responses"]:
                found.add(f"{method.upper()} {template}: {status}")
    return sorted(found)


def _wrong() -> list[str]:
    from app.main import create_app
    from tests.support.application import IsolatedSettings

    return undocumented(_answers, create_app(IsolatedSettings()).openapi()["paths"])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if is_worker(session.config):
        hand_over(session.config, "answers", sorted(_answers))
        return
    if _answers and exitstatus == pytest.ExitCode.OK and _wrong():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take over what a worker process was answered."""
    _answers.update((method, path, status) for method, path, status in handed_over(node, "answers"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _answers:
        return
    wrong = _wrong()
    statuses = sorted({status for _, _, status in _answers if status})
    terminalreporter.section("statuses of answers")
    terminalreporter.line(f"seen: {', '.join(map(str, statuses))}")
    for answer in wrong:
        terminalreporter.line(f"UNDOCUMENTED: {answer}")
    terminalreporter.line(f"{len(wrong)} undocumented")

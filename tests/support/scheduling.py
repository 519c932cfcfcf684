"""Which tests one worker process runs, one after the other, and which begin first.

A plugin of pytest, which `conftest.py` registers. The groups are by name and not by pytest-xdist's
mark, which its version 3.8 does not see under pytest 9.2.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.worker_processes import is_worker

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[2]
_SCHEMA = "tests/e2e/test_schema.py::test_every_request_is_answered_as_documented"
GROUPS = {
    "provider faults": ["tests/faults_provider/test_provider_faults.py"],
    "faults of servers": [
        "tests/faults/test_faults.py::test_nothing_acknowledged_is_lost_or_doubled[kills",
        "tests/faults/test_faults.py::test_nothing_acknowledged_is_lost_or_doubled[one-",
        "tests/faults/test_faults.py::test_nothing_acknowledged_is_lost_or_doubled[clock",
        "tests/faults/test_faults.py::test_nothing_acknowledged_is_lost_or_doubled[model",
    ],
    "generated right requests": [f"{_SCHEMA}[sqlite-positive", f"{_SCHEMA}[postgres-positive"],
    "generated wrong requests": [f"{_SCHEMA}[sqlite-negative", f"{_SCHEMA}[postgres-negative"],
    "other faults": ["tests/faults/test_faults.py"],
    "embedded engine": ["tests/embedded/test_engine.py", "tests/e2e/test_embedded_server.py"],
    "TypeScript client": ["tests/clients/test_typescript_client.py"],
    "clients of other people": ["tests/real_clients/test_clients.py"],
    "Python client": ["tests/clients/test_python_client.py", "tests/clients/test_packages.py"],
    "OpenAI server": ["tests/e2e/test_openai_server.py"],
    "open address": ["tests/e2e/test_open_address.py"],
    "Supabase's database": ["tests/identity/test_supabase_database.py"],
    "console": ["tests/console/test_pages.py", "tests/console/test_talking.py"],
    "places of the console": [
        "tests/console/test_attachments.py",
        "tests/console/test_keyboard.py",
        "tests/console/test_places.py",
        "tests/console/test_tool_calls.py",
        "tests/console/test_tools_place.py",
        "tests/console/test_units.py",
    ],
    "console in Firefox": ["tests/console/test_firefox.py"],
    "servers of tests": ["tests/test_postgres_fixture.py"],
    "bad audio": [
        "tests/voice/test_guard.py",
        "tests/voice/test_guard_limits.py",
        "tests/voice/test_uploads.py",
    ],
}
"""Beginnings of test ids: those of one group share something dear, or take a whole core each.

The longest come first. All other tests go, one by one, to whichever process is free.
"""


def group_of(nodeid: str) -> str | None:
    """Return the group of a test, if it has one."""
    for group, beginnings in GROUPS.items():
        if nodeid.startswith(tuple(beginnings)):
            return group
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the groups come first, in every worker alike."""
    if is_worker(config):
        order = {group: number for number, group in enumerate(GROUPS)}
        items.sort(key=lambda item: order.get(group_of(item.nodeid) or "", len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":  # noqa: ANN401  # its own
    """Hand out groups, and tests of no group one by one, in the order of their collection."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid) or nodeid

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)

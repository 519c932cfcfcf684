"""Every row by its name."""

from collections.abc import Awaitable, Callable

from tests.faults.clocks import clock_leaps_on_postgres, clock_leaps_on_sqlite
from tests.faults.commits import crashes_under_load, lost_commits
from tests.faults.database import database_away
from tests.faults.kills import kills_on_postgres, kills_on_sqlite
from tests.faults.model import sessions_and_turns
from tests.faults.one_key import (
    one_key_on_postgres,
    one_key_on_sqlite,
    one_session_on_postgres,
    one_session_on_sqlite,
)
from tests.faults.provider_row import provider_fails
from tests.faults.report import Plan, Report
from tests.faults.shutdown import rolling_restart, shutdown_with_streams
from tests.faults.slow import slow_peers
from tests.faults.storage import clock_moved, disk_full, limited_files, second_process

ROWS: dict[str, Callable[[Plan], Awaitable[Report]]] = {
    "kills-sqlite": kills_on_sqlite,
    "kills-postgres": kills_on_postgres,
    "one-key-sqlite": one_key_on_sqlite,
    "one-key-postgres": one_key_on_postgres,
    "one-session-sqlite": one_session_on_sqlite,
    "one-session-postgres": one_session_on_postgres,
    "shutdown": shutdown_with_streams,
    "rolling": rolling_restart,
    "database": database_away,
    "crashes": crashes_under_load,
    "lost-commits": lost_commits,
    "disk-full": disk_full,
    "limited-files": limited_files,
    "clock": clock_moved,
    "clock-leaps-sqlite": clock_leaps_on_sqlite,
    "clock-leaps-postgres": clock_leaps_on_postgres,
    "second-process": second_process,
    "slow": slow_peers,
    "provider": provider_fails,
    "model": sessions_and_turns,
}

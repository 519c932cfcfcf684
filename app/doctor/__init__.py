"""`agent-platform doctor`: looks at everything that a server needs, and says what to do."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

import anyio
import orjson
from pydantic import ValidationError

from app.core.config import Settings, setting_faults
from app.core.logging import configure_logging
from app.doctor.checks import Check, Verdict, broken, has_broken

_EXIT_BROKEN = 1
_MARKS = {Verdict.OK: "ok     ", Verdict.WARNING: "WARNING", Verdict.BROKEN: "BROKEN "}


def run(*, as_json: bool) -> int:
    """Print every check to standard output; return 1 where something is broken."""
    configure_logging("error")
    checks = anyio.run(check_all)
    is_broken = has_broken(checks)
    if as_json:
        document = {"healthy": not is_broken, "checks": [asdict(check) for check in checks]}
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.writelines(_line(check) for check in checks)
    return _EXIT_BROKEN if is_broken else 0


async def check_all() -> Sequence[Check]:
    """Look at settings, folders, port, database, tools, providers; nothing is made or changed."""
    try:
        settings = Settings()
    except ValidationError as error:
        advice = "See .env.example for every setting and its default."
        return [broken("settings", fault, advice) for fault in setting_faults(error)]
    from app.doctor.database_checks import check_database
    from app.doctor.local_checks import check_folders, check_port, check_settings
    from app.doctor.provider_checks import check_providers
    from app.doctor.tool_checks import check_tool_settings

    return [
        *check_settings(settings),
        *check_folders(settings),
        check_port(settings),
        *(tools := check_tool_settings(settings)),
        *await check_database(settings, looks_at_tools=not has_broken(tools)),
        *await check_providers(settings),
    ]


def _line(check: Check) -> str:
    advice = f"\n        -> {check.advice}" if check.advice else ""
    return f"{_MARKS[check.verdict]} {check.name}: {check.finding}{advice}\n"

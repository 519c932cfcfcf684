"""`agent-platform keys` and `workspaces`, on a database of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from app import cli
from app.core.security import DEFAULT_WORKSPACE_ID
from app.services.identity import parse
from tests.support import planted_secrets

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: Path) -> Path:
    (tmp_path / "agent-platform.db").write_bytes(sqlite_template.read_bytes())
    return tmp_path


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ran]


def run_in_a_process(folder: Path, *arguments: str) -> Ran:
    """Run one command as an operator does."""
    ran = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return searched(folder, arguments, Ran(ran.returncode, ran.stdout, ran.stderr))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process: starting one takes longer than what it does."""

    def run(folder: Path, *arguments: str) -> Ran:
        for name, value in environment(folder).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        try:
            status = cli.main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        shown = capsys.readouterr()
        return searched(folder, arguments, Ran(status, shown.out, shown.err))

    return run


def environment(folder: Path) -> dict[str, str]:
    return {**planted_secrets.SETTINGS, "DATA_DIR": str(folder)}


def searched(folder: Path, arguments: Sequence[str], ran: Ran) -> Ran:
    """Look for planted secrets in all that a command shows and stores."""
    makes_key = tuple(arguments[:2]) in {("keys", "create"), ("keys", "rotate")}
    place = planted_secrets.Place.MAKING if makes_key else planted_secrets.Place.ANSWER
    planted_secrets.search(place, ran.stdout, " ".join(arguments))
    planted_secrets.search(planted_secrets.Place.LOG, ran.stderr, " ".join(arguments))
    planted_secrets.search_sqlite(folder)
    return ran


def test_key_is_made_listed_rotated_and_revoked(folder: Path) -> None:
    made = run_in_a_process(folder, "keys", "create", "--name", "backend", "--scope", "agents:read")
    assert made.returncode == 0, made.stderr
    presented = parse(made.stdout.strip().encode())
    assert presented is not None

    rotated = run_in_a_process(folder, "keys", "rotate", presented.id, "--grace-seconds", "0")
    assert rotated.stdout.split("_")[1] == presented.id
    assert rotated.stdout != made.stdout
    assert (
        f"{presented.id}  live      backend  agents:read"
        in run_in_a_process(folder, "keys", "list").stdout
    )
    assert run_in_a_process(folder, "keys", "revoke", presented.id).returncode == 0
    assert f"{presented.id}  revoked" in run_in_a_process(folder, "keys", "list").stdout
    assert run_in_a_process(folder, "keys", "rotate", presented.id).returncode != 0


def test_workspace_has_keys_of_its_own(folder: Path, run: Run) -> None:
    workspace_id = run(folder, "workspaces", "create", "--name", "staging").stdout.strip()
    made = run(folder, "keys", "create", "--name", "k", "--workspace", workspace_id)

    assert made.returncode == 0
    assert run(folder, "keys", "list").stdout == ""
    assert "live" in run(folder, "keys", "list", "--workspace", workspace_id).stdout
    assert f"{workspace_id}  staging" in run(folder, "workspaces", "list").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "revoke", "00000000"),
        ("keys", "create", "--name", "k", "--workspace", "00000000-0000-0000-0000-000000000000"),
        ("keys", "create", "--name", "k", "--scope", "everything"),
        ("keys",),
    ],
)
def test_wrong_command_fails_with_a_sentence(
    folder: Path, run: Run, arguments: tuple[str, ...]
) -> None:
    failed = run(folder, *arguments)

    assert failed.returncode != 0
    assert failed.stdout == ""
    assert failed.stderr
    assert "Traceback" not in failed.stderr


def test_key_without_scopes_can_hold_conversations_and_no_more(folder: Path, run: Run) -> None:
    made = run(folder, "keys", "create", "--name", "backend")

    scopes = "agents:read sessions:read sessions:write turns:read turns:write"
    assert f"Scopes: {scopes} (" in made.stderr
    assert made.stdout.startswith("ap_")
    listed = run(folder, "keys", "list").stdout
    assert set(listed.split()[-1].split(",")) == set(scopes.split())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("red\x1b[31m", "red\\x1b[31m"),
        ("title\x1b]0;x\x07", "title\\x1b]0;x\\x07"),
        ("one\ntwo\r\t", "one\\ntwo\\r\\t"),
        ("c1\x9b31m", "c1\\x9b31m"),
        ("backwards\u202etxt.exe", "backwards\\u202etxt.exe"),
        ("Grüße, 世界", "Grüße, 世界"),
    ],
)
def test_name_with_terminal_sequences_is_printed_escaped(
    folder: Path, run: Run, name: str, shown: str
) -> None:
    run(folder, "keys", "create", "--name", name)
    run(folder, "workspaces", "create", "--name", name)

    assert f"  {shown}  " in run(folder, "keys", "list").stdout
    assert run(folder, "workspaces", "list").stdout.splitlines()[0].endswith(f"  {shown}")


def test_database_file_that_is_missing_is_named_and_not_created(tmp_path: Path, run: Run) -> None:
    failed = run(tmp_path, "keys", "list")

    assert failed.returncode != 0
    assert f"There is no database file {tmp_path / 'agent-platform.db'}" in failed.stderr
    assert not list(tmp_path.iterdir())


def test_database_that_is_not_migrated_is_named(tmp_path: Path, run: Run) -> None:
    (tmp_path / "agent-platform.db").touch()
    failed = run(tmp_path, "keys", "list")

    assert failed.returncode != 0
    assert "alembic upgrade head" in failed.stderr


def test_default_workspace_is_the_servers() -> None:
    assert cli.DEFAULT_WORKSPACE_ID == DEFAULT_WORKSPACE_ID

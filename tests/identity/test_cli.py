"""`agent-platform keys` and `workspaces`, on a database of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import cli
from app.core.security import DEFAULT_WORKSPACE_ID
from app.services.identity import parse
from tests import canaries

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: Path) -> Path:
    (tmp_path / "agent-platform.db").write_bytes(sqlite_template.read_bytes())
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            **canaries.SETTINGS,
            "DATA_DIR": str(folder),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    makes_key = arguments[:2] in {("keys", "create"), ("keys", "rotate")}
    place = canaries.Place.MAKING if makes_key else canaries.Place.ANSWER
    canaries.search(place, ran.stdout, " ".join(arguments))
    canaries.search(canaries.Place.LOG, ran.stderr, " ".join(arguments))
    canaries.search_sqlite(folder)
    return ran


def test_key_is_made_listed_rotated_and_revoked(folder: Path) -> None:
    made = run(folder, "keys", "create", "--name", "backend", "--scope", "agents:read")
    assert made.returncode == 0, made.stderr
    presented = parse(made.stdout.strip().encode())
    assert presented is not None

    rotated = run(folder, "keys", "rotate", presented.id, "--grace-seconds", "0")
    assert rotated.stdout.split("_")[1] == presented.id
    assert rotated.stdout != made.stdout
    assert f"{presented.id}  live      backend  agents:read" in run(folder, "keys", "list").stdout
    assert run(folder, "keys", "revoke", presented.id).returncode == 0
    assert f"{presented.id}  revoked" in run(folder, "keys", "list").stdout
    assert run(folder, "keys", "rotate", presented.id).returncode != 0


def test_workspace_has_keys_of_its_own(folder: Path) -> None:
    workspace_id = run(folder, "workspaces", "create", "staging").stdout.strip()
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
def test_wrong_command_fails_with_a_sentence(folder: Path, arguments: tuple[str, ...]) -> None:
    failed = run(folder, *arguments)

    assert failed.returncode != 0
    assert failed.stdout == ""
    assert failed.stderr
    assert "Traceback" not in failed.stderr


def test_database_that_is_not_migrated_is_named(tmp_path: Path) -> None:
    failed = run(tmp_path, "keys", "list")

    assert failed.returncode != 0
    assert "alembic upgrade head" in failed.stderr


def test_default_workspace_is_the_servers() -> None:
    assert cli.DEFAULT_WORKSPACE_ID == DEFAULT_WORKSPACE_ID

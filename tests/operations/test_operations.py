"""Follows docs/operations.md: its commands are run as they are written there."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from app.core.database.revision import REVISION
from tests.conftest import AUDIO, IN_CI, Postgres
from tests.support import planted_secrets
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess, open_session

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
on_postgres = pytest.mark.postgres
KEY = "sk-planted-in-the-test"


def commands(heading: str) -> list[str]:
    """Return the blocks of shell commands below a heading of the page."""
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found, heading
    section = rest.partition("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def command(heading: str) -> str:
    """Return the same blocks as one."""
    return "".join(commands(heading))


class Operator:
    """Somebody in a shell in the folder of the server."""

    def __init__(self, folder: Path, programs: Path | None = None) -> None:
        self.folder = folder
        binaries = folder / "bin"
        binaries.mkdir()
        command = binaries / "agent-platform"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m app.cli "$@"\n')
        command.chmod(0o755)
        self._environment = {
            "PATH": f"{binaries}:{programs or ''}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def run(self, block: str, database_url: str | None = None) -> str:
        environment = dict(self._environment)
        if database_url:
            environment["DATABASE_URL"] = database_url
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def new_database(postgres: Postgres) -> Iterator[Callable[[], str]]:
    """Makes empty databases; their direct URLs, as `pg_dump` needs them."""
    names: list[str] = []

    def make() -> str:
        names.append(f"operations_{uuid4().hex[:12]}")
        postgres.server.create_database(names[-1])
        return postgres.server.url(names[-1])

    yield make
    for name in names:
        postgres.server.drop_database(name)


@pytest.fixture
def operator(tmp_path: Path, request: pytest.FixtureRequest) -> Operator:
    if "new_database" not in request.fixturenames:
        return Operator(tmp_path)
    postgres: Postgres = request.getfixturevalue("postgres")
    programs = postgres.server.programs
    if not (programs / "pg_dump").exists() and not shutil.which("pg_dump"):
        if IN_CI:
            raise AssertionError("pg_dump is missing")
        pytest.skip("pg_dump is not installed: `apt install postgresql-client`")
    return Operator(tmp_path, programs)


def server_in(folder: Path, provider: Provider, **settings: str) -> ServerProcess:
    return ServerProcess(
        folder,
        DATA_DIR=str(folder / "data"),
        OPENAI_API_KEY=KEY,
        OPENAI_BASE_URL=provider.base_url,
        TTS_MODEL="tts-test",
        **settings,
    )


@contextmanager
def client_in(folder: Path, provider: Provider, **settings: str) -> Generator[httpx2.Client]:
    with server_in(folder, provider, **settings) as server, server.client() as client:
        yield client


def read(client: httpx2.Client, path: str) -> Any:  # noqa: ANN401  # JSON, or sound
    """Return an answer's content; PostgreSQL keeps no order of the members of JSON."""
    response = client.get(path)
    is_json = "json" in response.headers["content-type"]
    return response.json() if is_json else response.content


def fill(client: httpx2.Client) -> dict[str, Any]:
    """Make one of everything; return what must be there again, by path."""
    session_id = open_session(client)
    client.post("/messages/text", json={"session_id": session_id, "content": "Grüße 🌍"})
    spoken = client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("x.wav", (AUDIO / "anna_01.wav").read_bytes())},
    )
    client.post(f"/sessions/{session_id}/fork", json={})
    key = client.post("/keys", json={"name": "k", "scopes": ["agents:read"]}).json()
    workspace = client.post("/workspaces", json={"name": "second"}).json()
    other = {"X-Workspace-Id": workspace["id"]}
    client.post("/agents", json={"name": "Eve"}, headers=other)
    paths = [
        f"/sessions/{session_id}",
        f"/turns/{spoken.headers['x-turn-id']}",
        f"/turns/{spoken.headers['x-turn-id']}/audio",
        "/sessions",
        "/agents",
        "/keys",
        "/workspaces",
        "/usage",
        "/audit",
    ]
    seen: dict[str, Any] = {path: read(client, path) for path in paths}
    seen["/agents elsewhere"] = client.get("/agents", headers=other).content
    seen["key"] = key["key"] if "key" in key else key["secret"]
    seen["workspace"] = workspace["id"]
    assert len(seen[paths[2]]) > 1000
    return seen


def assert_same(client: httpx2.Client, seen: dict[str, Any]) -> None:
    other = {"X-Workspace-Id": seen["workspace"]}
    for path, content in seen.items():
        if path.endswith("elsewhere"):
            assert client.get("/agents", headers=other).content == content
        elif path.startswith("/"):
            assert read(client, path) == content, path
    keyed = client.get("/agents", headers={"Authorization": f"Bearer {seen['key']}"})
    assert keyed.status_code == 200


def test_backup_of_sqlite_is_made_beside_a_running_server_and_restored(
    operator: Operator, provider: Provider
) -> None:
    with server_in(operator.folder, provider) as server:
        with server.client() as client:
            seen = fill(client)
            assert "ok" in operator.run(command("SQLite: back up"))
            open_session(client)  # what is later than the backup is lost
        server.stop()
        operator.run(command("SQLite: restore"))
        server.start()
        with server.client() as client:
            assert_same(client, seen)
    assert (operator.folder / "backup.db").stat().st_mode & 0o077 == 0


@on_postgres
def test_backup_of_postgres_is_restored_into_another_database(
    operator: Operator, provider: Provider, new_database: Callable[[], str]
) -> None:
    first, second = new_database(), new_database()
    with client_in(operator.folder, provider, DATABASE_URL=first) as client:
        seen = fill(client)
        operator.run(command("PostgreSQL: back up"), first)
    operator.run(command("PostgreSQL: restore"), second)
    with client_in(operator.folder, provider, DATABASE_URL=second) as client:
        assert_same(client, seen)


@on_postgres
def test_backup_and_restore_work_for_an_owner_who_is_no_superuser(
    operator: Operator, provider: Provider, postgres: Postgres, new_database: Callable[[], str]
) -> None:
    owner = f"owner_{uuid4().hex[:8]}"
    postgres.server.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE NOBYPASSRLS")
    postgres.server.execute(f"GRANT agent_platform_app TO {owner} WITH ADMIN OPTION")
    urls: list[str] = []
    for _ in range(2):
        name = new_database().rpartition("/")[2]
        postgres.server.execute(f'ALTER DATABASE "{name}" OWNER TO {owner}')
        urls.append(postgres.server.url(name, user=owner))
    with client_in(operator.folder, provider, DATABASE_URL=urls[0]) as client:
        seen = fill(client)
        operator.run(command("PostgreSQL: back up"), urls[0])
    operator.run(command("PostgreSQL: restore"), urls[1])
    with client_in(operator.folder, provider, DATABASE_URL=urls[1]) as client:
        assert_same(client, seen)


def check_rollback(
    operator: Operator, provider: Provider, url: str | None, settings: dict[str, str]
) -> None:
    undo, redo = commands("Roll back an upgrade")
    with server_in(operator.folder, provider, **settings) as server:
        with server.client() as client:
            seen = fill(client)
        server.stop()
        for revision in ("0006", "0005", "0004"):
            said = operator.run(undo.replace("0006", revision), url)
            assert f"at revision {revision}" in said
        operator.run(redo, url)
        server.start()
        # The usage of a turn is revision 0005's.
        kept = {path: each for path, each in seen.items() if path[:5] not in {"/usag", "/turn"}}
        with server.client() as client:
            for path in [path for path in kept if path.startswith("/sessions/")]:
                assert without_receipts(read(client, path)) == without_receipts(kept.pop(path))
            assert_same(client, kept)


def without_receipts(history: Any) -> Any:  # noqa: ANN401  # JSON
    """Return a history without what its answers took, which is as old as the table of usage."""
    receipt = ("usage", "timings", "model", "attempt", "error")
    for message in history["messages"]:
        for field in receipt:
            message.pop(field, None)
    return history


def test_migrations_of_sqlite_are_undone_and_done_again(
    operator: Operator, provider: Provider
) -> None:
    check_rollback(operator, provider, None, {})


@on_postgres
def test_migrations_of_postgres_are_undone_and_done_again(
    operator: Operator, provider: Provider, new_database: Callable[[], str]
) -> None:
    url = new_database()
    check_rollback(operator, provider, url, {"DATABASE_URL": url})


def test_revision_that_does_not_exist_is_refused_with_those_that_do(operator: Operator) -> None:
    said = operator.run("agent-platform migrate --to 9999 || test $? = 64")

    assert "There is no revision '9999'" in said
    assert REVISION in said


@on_postgres
def test_sqlite_is_moved_to_postgres_again_and_again(
    operator: Operator, provider: Provider, new_database: Callable[[], str]
) -> None:
    (move,) = commands("Move from SQLite to PostgreSQL")
    url = new_database()
    with client_in(operator.folder, provider) as client:
        fill(client)
        said = operator.run(f"{move.strip()} || test $? = 64", url)
        assert "Another process uses" in said
    operator.run(move, url)
    with client_in(operator.folder, provider) as client:
        seen = fill(client)  # what came since the first copy
    said = operator.run(move, url)

    rows = re.findall(r"^(\w+): (\d+) of (\d+) rows$", said, re.MULTILINE)
    counts = {table: int(there) for table, there, _ in rows}
    assert all(there == wanted for _, there, wanted in rows)
    assert counts["turns"] == 4
    assert counts["recordings"] == 2
    assert counts["audio_clips"] >= 2
    assert counts["audit_log"] > 0
    assert planted_secrets.DATABASE_PASSWORD not in said
    with client_in(operator.folder, provider, DATABASE_URL=url) as client:
        assert_same(client, seen)
        session_id = open_session(client)
        body = {"session_id": session_id, "content": "Hi"}
        assert client.post("/messages/text", json=body).status_code == 200
    said = operator.run(f"{move.strip()} || test $? = 65", url)
    assert "The copy is not complete" in said
    assert "use a target that has no other data" in said

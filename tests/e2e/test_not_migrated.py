"""A production server that is started before its migration, and one whose database is away."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from app.core.config import Settings
from app.core.database.migrations import upgrade
from tests.conftest import IsolatedSettings, Postgres
from tests.support import planted_secrets
from tests.support.server_process import ServerProcess

ADMIN = {"Authorization": f"Bearer {planted_secrets.ADMIN_KEY}"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The settings of a database without tables."""
    if request.param == "sqlite":
        yield {}
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = f"empty_{uuid4().hex[:12]}"
    postgres.server.create_database(name)
    yield {"DATABASE_URL": postgres.pooler.url(name)}
    postgres.server.drop_database(name)


def wait_until_live(server: ServerProcess) -> None:
    process = server.launch()
    while process.poll() is None:
        try:
            httpx2.get(f"{server.url}/health/live", timeout=120)
        except httpx2.TransportError:
            continue
        return
    raise AssertionError(server.log())


def test_missing_migration_is_one_sentence_and_the_server_serves_after_it(
    empty: dict[str, str], tmp_path: Path
) -> None:
    server = ServerProcess(tmp_path, APP_ENV="production", OPENAI_API_KEY="k", **empty)
    wait_until_live(server)
    with server.client() as client:
        refused = client.get("/agents", headers=ADMIN)
        before = server.log()
        upgrade(settings_of(tmp_path, empty))
        while client.get("/health/ready").status_code != 200:
            pass
        served = client.get("/agents", headers=ADMIN)
    server.stop()

    assert refused.status_code == 503
    assert refused.json()["code"] == "database-not-migrated"
    assert "agent-platform migrate" in refused.json()["detail"]
    assert served.status_code == 200
    errors = [line for line in before.splitlines() if '"level":"error"' in line]
    assert len(errors) == 1
    assert "agent-platform migrate" in errors[0]
    assert "Traceback" not in server.log()


def test_database_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    server = ServerProcess(
        tmp_path,
        APP_ENV="production",
        OPENAI_API_KEY="k",
        DATABASE_URL="postgresql://u@127.0.0.1:1/db",
    )
    wait_until_live(server)
    with server.client() as client:
        assert client.get("/health/ready").status_code == 503
    server.stop()

    assert server.log().count("The database cannot be reached") == 1
    assert "Traceback" not in server.log()


def settings_of(folder: Path, database: dict[str, str]) -> Settings:
    values = {name.lower(): value for name, value in database.items()}
    return IsolatedSettings.model_validate({"data_dir": folder, **values})

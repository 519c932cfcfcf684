"""`agent-platform doctor`: what it finds, and its exit status."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Postgres
from tests.support import planted_secrets
from tests.support.provider import Fault, Provider

ROOT = Path(__file__).parents[2]


def examine(folder: Path, **settings: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run it in `folder`; return its exit status and the checks by name, the worst of each."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = str(listener.getsockname()[1])
    ran = subprocess.run(
        [sys.executable, "-m", "app.cli", "doctor", "--json"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            **planted_secrets.SETTINGS,
            "PORT": port,
            "DATA_DIR": str(folder / "data"),
            "OPENAI_API_KEY": planted_secrets.PROVIDER_KEY,
            **settings,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    planted_secrets.search(planted_secrets.Place.ANSWER, ran.stdout, "doctor")
    planted_secrets.search(planted_secrets.Place.LOG, ran.stderr, "doctor")
    assert "Traceback" not in ran.stderr, ran.stderr
    document = json.loads(ran.stdout)
    assert document["healthy"] is (ran.returncode == 0)
    order = ["ok", "warning", "broken"]
    checks = sorted(document["checks"], key=lambda check: order.index(check["verdict"]))
    return ran.returncode, {check["name"]: check for check in checks}


@pytest.fixture
def data(tmp_path: Path, sqlite_template: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    file = folder / "agent-platform.db"
    file.write_bytes(sqlite_template.read_bytes())
    file.chmod(0o600)
    return folder


def test_a_server_that_would_serve_is_healthy(
    tmp_path: Path, data: Path, provider: Provider
) -> None:
    provider.shutdown_dates = {"gpt-transcribe": None, "tts-1": None}

    status, checks = examine(tmp_path, OPENAI_BASE_URL=provider.base_url)

    assert data.exists()
    assert status == 0
    assert {name: check["verdict"] for name, check in checks.items()} == dict.fromkeys(
        [
            "settings", "data folder", "disk", "admin key", "port", "database file", "database",
            "revision", "provider of chat", "provider of stt", "provider of tts",
        ],
        "ok",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "name", "finding"),
    [
        ({"PORT": "http"}, "settings", "PORT"),
        ({"DATABASE_URL": "postgresql://u:p@127.0.0.1:9/x"}, "database", "ConnectionRefusedError"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, "provider of chat", "provider-unavailable"),
        ({"CHAT_MODEL": "no-such-model"}, "provider of chat", "does not list no-such-model"),
        ({"MODELS_DIR": "no-such-folder"}, "models folder", "no folder"),
    ],
    ids=str,
)
def test_what_does_not_work_is_named_with_what_to_do(
    tmp_path: Path,
    data: Path,
    provider: Provider,
    settings: dict[str, str],
    name: str,
    finding: str,
) -> None:
    provider.shutdown_dates = {"gpt-transcribe": None, "tts-1": None}

    status, checks = examine(tmp_path, **{"OPENAI_BASE_URL": provider.base_url, **settings})

    assert data.exists()
    assert status == 1
    assert checks[name]["verdict"] == "broken"
    assert finding in checks[name]["finding"]
    assert checks[name]["advice"]


def test_a_key_that_the_provider_refuses_is_broken(
    tmp_path: Path, data: Path, provider: Provider
) -> None:
    provider.fail(Fault.STATUS_401, "models", times=None)

    status, checks = examine(tmp_path, OPENAI_BASE_URL=provider.base_url)

    assert data.exists()
    assert status == 1
    assert checks["provider of chat"]["finding"].startswith("provider-unauthorized")
    assert "OPENAI_API_KEY" in checks["provider of chat"]["advice"]


def test_what_should_be_changed_is_a_warning(
    tmp_path: Path, data: Path, provider: Provider
) -> None:
    soon = (datetime.now(UTC).date() + timedelta(days=30)).isoformat()
    provider.shutdown_dates = {"gpt-transcribe": soon, "tts-1": None}
    (tmp_path / ".env").write_text("LIMIT_USD_PERDAY=5\n# OTHER=1\n")
    (data / "agent-platform.db").chmod(0o644)
    data.chmod(0o755)

    status, checks = examine(tmp_path, OPENAI_BASE_URL=provider.base_url)

    assert status == 0
    warnings = {name for name, check in checks.items() if check["verdict"] == "warning"}
    assert warnings == {"settings", "database file", "data folder", "provider of stt"}
    assert checks["settings"]["advice"] == "Is LIMIT_USD_PER_DAY meant?"
    assert soon in checks["provider of stt"]["finding"]


def test_a_port_that_another_program_has_is_broken(
    tmp_path: Path, data: Path, provider: Provider
) -> None:
    status, checks = examine(tmp_path, OPENAI_BASE_URL=provider.base_url, PORT=str(provider.port))

    assert data.exists()
    assert status == 1
    assert checks["port"]["verdict"] == "broken"


@pytest.mark.postgres
def test_of_postgres_it_tells_pooler_clock_role_and_revision(
    tmp_path: Path, provider: Provider, postgres: Postgres, postgres_template: str
) -> None:
    provider.shutdown_dates = {"gpt-transcribe": None, "tts-1": None}
    urls = {"direct": postgres.server.url(postgres_template)}
    postgres.server.create_database("doctor_empty")
    urls["pooled"] = postgres.pooler.url("doctor_empty")
    found: dict[str, dict[str, Any]] = {}
    for name, url in urls.items():
        _, found[name] = examine(
            tmp_path,
            OPENAI_BASE_URL=provider.base_url,
            DATABASE_URL=url,
            APP_ENV="production",
        )
    postgres.server.drop_database("doctor_empty")

    assert found["direct"]["database server"]["finding"].endswith("connected directly")
    assert found["direct"]["clock"]["verdict"] == "ok"
    assert found["direct"]["row policies"]["verdict"] == "ok"
    assert found["direct"]["revision"]["verdict"] == "ok"
    assert found["pooled"]["database server"]["finding"].endswith("a transaction pooler")
    assert found["pooled"]["revision"]["verdict"] == "broken"
    assert "migrate" in found["pooled"]["revision"]["advice"]

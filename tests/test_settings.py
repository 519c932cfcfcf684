"""Settings: documented in three places alike, and refused with a sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from app.core.config import Settings
from app.core.database_url import DatabaseUrl, WrongDatabaseUrl
from tests.conftest import IsolatedSettings

ROOT = Path(__file__).parent.parent
NAMES = sorted(name.upper() for name in Settings.model_fields)


def test_every_setting_is_in_the_example_environment_with_its_default() -> None:
    example = dict(
        re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    )

    assert sorted(example) == NAMES
    for name, field in Settings.model_fields.items():
        default = (
            "" if field.default is None else str(getattr(field.default, "value", field.default))
        )
        assert example[name.upper()] == default, name


def test_every_setting_is_in_the_readme() -> None:
    _, _, section = (ROOT / "README.md").read_text().partition("\n## Settings\n")
    rows = re.findall(r"^\| `([A-Z_]+)` \|", section, re.MULTILINE)

    assert sorted(rows) == NAMES


def test_example_environment_is_accepted_as_it_is() -> None:
    class ExampleSettings(Settings):
        model_config = SettingsConfigDict(env_file=ROOT / ".env.example", env_ignore_empty=True)

    assert ExampleSettings().model_dump() == IsolatedSettings().model_dump()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("APP_ENV", "staging"),
        ("ADMIN_API_KEY", "short"),
        ("DATABASE_URL", "mysql://localhost/x"),
        ("DATABASE_URL", "postgresql://u:secret-word@h:port/x"),
        ("OPENAI_BASE_URL", "localhost:11434"),
        ("OPENAI_BASE_URL", "http://host:port/v1"),
        ("OPENAI_BASE_URL", "http://host:70000/v1"),
        ("STT_BASE_URL", "http://[::1/v1"),
        ("TTS_BASE_URL", "https:///v1"),
        ("TTS_BASE_URL", "https://two words/v1"),
        ("DATABASE_POOL_SIZE", "0"),
        ("CHAT_PROVIDER", "anthropic"),
        ("EMBEDDED_MODELS", "huge"),
    ],
)
def test_wrong_value_stops_the_start_with_a_sentence(name: str, value: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import app.main"],
        env={**os.environ, name: value, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 2
    assert name in run.stderr
    assert "Traceback" not in run.stderr
    assert "secret-word" not in run.stderr


@pytest.mark.parametrize(
    ("given", "dsn"),
    [
        ("postgres://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql://u:p@h:6543/db", "postgresql://u:p@h:6543/db"),
        ("postgresql+asyncpg://u:p@h/db?ssl=require", "postgresql://u:p@h/db?sslmode=require"),
        ("postgresql+asyncpg://u:p@h/db?sslmode=require", "postgresql://u:p@h/db?sslmode=require"),
        ("postgres://u:p@h/db?pgbouncer=true&connect_timeout=5", "postgresql://u:p@h/db"),
        ("postgresql://u:p%40ss@h/db", "postgresql://u:p%40ss@h/db"),
        ("postgresql://u:p@ss#w/or?d@h/db", "postgresql://u:p%40ss%23w%2For%3Fd@h/db"),
        (
            "postgresql://postgres.ref:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres",
            "postgresql://postgres.ref:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres",
        ),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?host=%2Frun%2Fpostgresql"),
    ],
)
def test_database_url_is_taken_as_dashboards_show_it(given: str, dsn: str) -> None:
    url = DatabaseUrl.parse(SecretStr(given), Path("data"))

    assert url.dsn is not None
    assert url.dsn.get_secret_value() == dsn
    assert "pw" not in str(url)


@pytest.mark.parametrize(
    "given",
    [
        "mysql://u:p@h/db",
        "postgresql:/u:p@h/db",
        "h:5432/db",
        "postgresql://u:p@h:port/db",
        "postgresql://u:[YOUR-PASSWORD]@h/db",
        "postgresql://u:p@h/db?sslmode=perhaps",
        "postgresql://u:p@h/db?surprise=1",
        "postgresql:///db",
    ],
)
def test_wrong_database_url_is_refused_without_being_quoted(given: str) -> None:
    with pytest.raises(WrongDatabaseUrl) as refusal:
        DatabaseUrl.parse(SecretStr(given), Path("data"))

    assert "DATABASE_URL" in str(refusal.value)
    assert given not in str(refusal.value)


def test_without_a_url_the_database_is_a_file_in_the_data_folder() -> None:
    assert DatabaseUrl.parse(None, Path("data")).sqlite_path == Path("data/agent-platform.db")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("sqlite+aiosqlite:///relative.db", Path("relative.db")),
        ("sqlite:////absolute/file.db", Path("/absolute/file.db")),
    ],
)
def test_sqlite_url_names_a_file(given: str, path: Path) -> None:
    url = DatabaseUrl.parse(SecretStr(given), Path("data"))

    assert url.is_sqlite
    assert url.sqlite_path == path


@pytest.mark.parametrize(
    ("given", "embedded"),
    [
        ({}, (True, True, True)),
        ({"openai_api_key": "k"}, (False, False, False)),
        ({"openai_base_url": "http://localhost:11434/v1"}, (False, False, False)),
        ({"stt_base_url": "http://localhost:1/v1"}, (True, False, True)),
        ({"openai_api_key": "k", "tts_provider": "embedded"}, (False, False, True)),
        ({"chat_provider": "openai"}, (False, True, True)),
    ],
)
def test_each_part_is_embedded_unless_a_server_is_named_for_it(
    given: dict[str, str], embedded: tuple[bool, bool, bool]
) -> None:
    settings = IsolatedSettings.model_validate(given)

    found = (settings.chat_is_embedded, settings.stt_is_embedded, settings.tts_is_embedded)
    assert found == embedded

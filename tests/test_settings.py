"""Settings: documented in three places alike, and refused with a sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from app.core.config import LogLevel, Provider, Settings, load_settings
from app.core.database.url import DatabaseUrl, InvalidDatabaseUrl
from app.core.unknown_settings import unknown_settings
from tests.support.application import IsolatedSettings

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
        default = default.lower() if isinstance(field.default, bool) else default
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
        ("OPENAI_BASE_URL", "http://h\u200bost/v1"),
        ("OPENAI_API_KEY", "sk-\u200bsecret-word"),
        ("OPENAI_API_KEY", "Bearer secret-word"),
        ("STT_API_KEY", "secret-word\u00e9"),
        ("TTS_API_KEY", "secret-word\nX-Other: 1"),
        ("CHAT_MODEL", "gpt\u200b-6"),
        ("TTS_MODEL", " "),
        ("CHAT_FIRST_BYTE_SECONDS", "0"),
        ("CHAT_FIRST_BYTE_SECONDS", "soon"),
        ("DATABASE_POOL_SIZE", "0"),
        ("CHAT_PROVIDER", "anthropic"),
        ("EMBEDDED_MODELS", "huge"),
    ],
)
def test_wrong_value_stops_the_start_with_a_sentence(
    name: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as stopped:
        load_settings()

    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert name in said
    assert "Traceback" not in said
    assert "secret-word" not in said


def test_process_with_a_wrong_value_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import app.main"],
        env={**os.environ, "STT_API_KEY": "secret-word\u00e9", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 2
    assert "STT_API_KEY" in run.stderr
    assert "Traceback" not in run.stderr
    assert "secret-word" not in run.stderr


@pytest.mark.parametrize("around", ["{} ", " {}", "\t{}\n", "\u00a0{}"])
def test_spaces_around_what_was_copied_are_trimmed(
    around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "OPENAI_BASE_URL": "http://host/v1",
        "STT_BASE_URL": "http://host/v2",
        "OPENAI_API_KEY": "sk-1",
        "TTS_API_KEY": "sk-2",
        "CHAT_MODEL": "gpt",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, around.format(value))

    settings = IsolatedSettings()

    assert (settings.openai_base_url, settings.stt_base_url) == ("http://host/v1", "http://host/v2")
    assert settings.openai_api_key == SecretStr("sk-1")
    assert settings.tts_api_key == SecretStr("sk-2")
    assert settings.chat_model == "gpt"


def test_key_of_spaces_alone_is_no_key() -> None:
    settings = IsolatedSettings.model_validate({"openai_api_key": "  "})

    assert settings.openai_api_key is None
    assert settings.embedded_capabilities == {"chat", "stt", "tts"}


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({}, "gpt-realtime-2.1-mini"),
        ({"openai_base_url": "https://api.openai.com/v1/"}, "gpt-realtime-2.1-mini"),
        ({"openai_base_url": "https://eu.api.openai.com/v1"}, "gpt-realtime-2.1-mini"),
        ({"openai_base_url": "http://localhost:11434/v1"}, "tts-1"),
        ({"openai_base_url": "https://api.openai.com.example/v1"}, "tts-1"),
        ({"tts_base_url": "http://localhost:8880/v1"}, "tts-1"),
        (
            {"openai_base_url": "http://h/v1", "tts_base_url": "https://api.openai.com/v1"},
            "gpt-realtime-2.1-mini",
        ),
        ({"openai_base_url": "http://h/v1", "tts_model": "kokoro"}, "kokoro"),
    ],
)
def test_default_speech_model_is_one_that_the_server_has(given: dict[str, str], model: str) -> None:
    assert IsolatedSettings.model_validate(given).speech_model == model


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
    with pytest.raises(InvalidDatabaseUrl) as refusal:
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
        ({}, {"chat", "stt", "tts"}),
        ({"openai_api_key": "k"}, set[str]()),
        ({"openai_base_url": "http://localhost:11434/v1"}, set[str]()),
        ({"stt_base_url": "http://localhost:1/v1"}, {"chat", "tts"}),
        ({"openai_api_key": "k", "tts_provider": "embedded"}, {"tts"}),
        ({"chat_provider": "openai"}, {"stt", "tts"}),
    ],
)
def test_each_capability_is_embedded_unless_a_server_is_named_for_it(
    given: dict[str, str], embedded: set[str]
) -> None:
    settings = IsolatedSettings.model_validate(given)

    assert settings.embedded_capabilities == embedded


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("log_level", "DEBUG", LogLevel.DEBUG),
        ("log_level", " Warning ", LogLevel.WARNING),
        ("chat_provider", "OpenAI", Provider.OPENAI),
        ("tts_provider", "EMBEDDED", Provider.EMBEDDED),
        ("app_env", "Development", "development"),
        ("embedded_models", "Small", "small"),
    ],
)
def test_letter_case_does_not_matter_in_a_choice(name: str, given: str, value: str) -> None:
    assert getattr(IsolatedSettings.model_validate({name: given}), name) == value


def test_name_in_env_file_that_is_no_setting_is_reported_with_the_most_similar_one() -> None:
    given = ["limit_usd_perday", "openai_api_kye", "LUNCH", "COMPOSE_PROJECT_NAME", "PORT", "extra"]

    assert unknown_settings(Settings.model_fields, given, ()) == [
        "Warning: 'LIMIT_USD_PERDAY' in .env is not a setting: did you mean LIMIT_USD_PER_DAY?",
        "Warning: 'LUNCH' in .env is not a setting; see .env.example.",
        "Warning: 'OPENAI_API_KYE' in .env is not a setting: did you mean OPENAI_API_KEY?",
    ]


def test_name_in_the_environment_is_reported_only_if_it_is_almost_a_setting() -> None:
    given = ["PATH", "HOSTNAME", "PORTS_OPEN", "OPENAI_API_KEY", "LIMIT_USD_PERDAY", "home"]

    assert unknown_settings(Settings.model_fields, (), given) == [
        (
            "Warning: the environment variable 'LIMIT_USD_PERDAY' is not a setting: "
            "did you mean LIMIT_USD_PER_DAY?"
        )
    ]


def test_unknown_name_is_reported_once_by_a_process_and_its_value_never(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LIMIT_USD_PERDAY=secret-word\n")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import app.main; from app.core import config as c; c.load_settings()",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stderr.count("LIMIT_USD_PER_DAY") == 1
    assert "secret-word" not in run.stderr

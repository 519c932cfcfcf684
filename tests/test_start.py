"""What is loaded by a start, and what only by the first use: memory and time to start depend on it.

Nothing here measures either: `make bench` does.
"""

import os
import subprocess
import sys
from pathlib import Path

from app.core.config import Settings
from tests.support.provider import Provider

ROOT = Path(__file__).parent.parent

SERVE = """
import asyncio, sys
from app import cli
from app.server import lean_imports
lean_imports.load_frameworks()
from uvicorn.server import Server
from app.main import app, load_settings
from app.http.protocol import DeadlineHttpProtocol
from app.services.openai_service import warn_of_shutdowns
from app.services.provider_http.client import ProviderClient
from app.providers import fetch_weights

async def serve():
    settings = load_settings()
    fetch_weights(settings)
    async with app.router.lifespan_context(app):
        async with ProviderClient(settings.openai_base_url, "key") as client:
            await warn_of_shutdowns(client, {})

asyncio.run(serve())
print(*sys.modules)
"""
"""What `agent-platform serve` imports, opens and asks by itself."""

DESCRIBE = """
import json
from app.main import app
print(json.dumps(app.openapi(), sort_keys=True))
"""
DESCRIBE_LATER = f"from app.server import lean_imports; lean_imports.load_frameworks(); {DESCRIBE}"

USE_ALL = """
from app.server import lean_imports
lean_imports.load_frameworks()
import logging.config, zipfile
import uvicorn
from uvicorn.main import main
print(uvicorn.Server.__name__, main.name, zipfile.Path, logging.config.dictConfig)
"""
"""What the frameworks are loaded without is there for whoever wants it later."""

HELP = """
import sys
before = set(sys.modules)
from app.cli import main
try:
    main(["--help"])
except SystemExit:
    print("MODULES", *set(sys.modules) - before)
"""

AT_FIRST_USE = {
    "aiohttp",  # WebSockets, proxies
    "alembic",  # a database at another revision
    "click",  # uvicorn's own command line
    "av",
    "cryptography",  # Supabase
    "idna",  # with yarl
    "jwt",
    "lameenc",
    "logging.config",
    "multiprocessing",
    "numpy",
    "sentencex",
    "uvicorn.main",
    "yarl",
    "app.services.local_service.adapter",
    "app.services.local_service.engine",
    "app.services.local_service.smart_turn",
    "app.services.provider_http.aiohttp_transport",
}
DRIVERS = {
    "sqlite": {"aiosqlite", "sqlite3", "sqlalchemy.dialects.sqlite"},
    "postgres": {"asyncpg", "sqlalchemy.dialects.postgresql"},
}


def run(program: str, folder: Path, **settings: str) -> str:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **settings},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_server_without_the_engine_loads_what_it_needs_and_one_databases_driver(
    settings: Settings, tmp_path: Path
) -> None:
    own = "sqlite" if settings.parsed_database_url.is_sqlite else "postgres"
    other = "postgres" if own == "sqlite" else "sqlite"
    url = settings.database_url
    database = {"DATABASE_URL": url.get_secret_value()} if url else {}

    with Provider() as provider:
        modules = run(
            SERVE,
            tmp_path,
            **database,
            DATA_DIR=str(settings.data_dir),
            OPENAI_API_KEY="not-checked",
            OPENAI_BASE_URL=provider.base_url,
        )
        assert "/v1/models" in {request.path for request in provider.requests}

    loaded = set(modules.split())
    assert DRIVERS[own] <= loaded
    assert not loaded & (AT_FIRST_USE | DRIVERS[other])


def test_what_the_frameworks_are_loaded_without_can_be_loaded_later(tmp_path: Path) -> None:
    assert run(USE_ALL, tmp_path).startswith("Server main <class 'zipfile.Path'> <function")


def test_the_api_is_described_as_by_frameworks_that_are_loaded_whole(tmp_path: Path) -> None:
    settings = {"OPENAI_API_KEY": "not-checked", "DATA_DIR": str(tmp_path)}

    described = run(DESCRIBE_LATER, tmp_path, **settings)

    assert '"/messages/text"' in described
    assert described == run(DESCRIBE, tmp_path, **settings)


def test_the_command_lines_help_loads_nothing_but_python(tmp_path: Path) -> None:
    _, _, modules = run(HELP, tmp_path).rpartition("MODULES")

    others = {name.partition(".")[0] for name in modules.split()} - sys.stdlib_module_names
    assert others == {"app"}


def test_a_start_builds_each_route_once() -> None:
    from app.main import app

    assert {type(route).__name__ for route in app.routes} <= {
        "APIRoute",
        "Mount",
        "Route",
        "EndpointRoute",
        "_TextMessageRoute",
        "_ChatCompletionRoute",
        "_ResponseRoute",
        "_SpeechRoute",
        "_TranscriptionRoute",
        "_AgUiRoute",
        "_ChatRoute",
    }

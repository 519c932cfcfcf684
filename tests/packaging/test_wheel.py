"""The wheel, built from what git tracks, in an environment that has nothing of the checkout."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from app import __version__
from app.core.database.revision import REVISION
from tests.conftest import Postgres
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess, open_session

ROOT = Path(__file__).parents[2]


def tracked_files(*folders: str) -> list[str]:
    """Return the files that a clean checkout has: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel in a copy, so that nothing is left in the checkout."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so nothing says which files are its own")
    source = tmp_path_factory.mktemp("source")
    for name in tracked_files("app", "alembic", "*.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(built)]
    made = subprocess.run([*command, "."], cwd=source, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and nothing else; its dependencies are those that this process has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    install += ["--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    links = folder / "lib" / version / "site-packages" / "dependencies.pth"
    links.write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return folder / "bin" / "agent-platform"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def run(command: Path, folder: Path, *arguments: str, **settings: str) -> str:
    """Run the installed command in a folder; return what it printed."""
    ran = subprocess.run(
        [command, *arguments],
        cwd=folder,
        env={"PATH": os.defpath, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def test_wheel_has_every_file_of_the_package_and_every_migration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    migrations = {
        name.replace("alembic/", "app/migrations/", 1)
        for name in tracked_files("alembic")
        if name.endswith(".py")
    }

    assert packed == {*tracked_files("app"), *migrations}


def test_installed_command_says_its_version_without_reading_settings(
    command: Path, tmp_path: Path
) -> None:
    assert run(command, tmp_path, "--version", PORT="http") == f"agent-platform {__version__}\n"


def test_installed_server_serves_from_an_empty_folder(
    command: Path, provider: Provider, tmp_path: Path
) -> None:
    with ServerProcess(
        tmp_path,
        command=[str(command), "serve"],
        PYTHONPATH="",
        OPENAI_API_KEY="sk-planted-in-the-test",
        OPENAI_BASE_URL=provider.base_url,
    ) as server:
        with server.client() as client:
            body = {"session_id": open_session(client), "content": "Where are you?"}
            answer = client.post("/messages/text", json=body)
            start = client.get("/")
            loaded = re.findall(r'(?:src|href)="(console/[^"]+)"', start.text)
            parts = [client.get(f"/{path}") for path in loaded]
            pages = [client.get(path) for path in ("/docs", "/redoc")]
            assets = [
                client.get(f"/assets/{name}")
                for name in ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js")
            ]
        log = server.log()

    assert answer.json()["content"] == provider.chat.text
    assert len(parts) > 5
    assert all(part.status_code == 200 and part.content for part in (start, *parts))
    assert [page.status_code for page in pages] == [200, 200]
    assert all(asset.status_code == 200 and len(asset.content) > 1000 for asset in assets)
    assert "Traceback" not in log


def test_installed_command_migrates_and_makes_a_key_on_sqlite(
    command: Path, tmp_path: Path
) -> None:
    assert "SQLite" in run(command, tmp_path, "migrate")
    assert run(command, tmp_path, "keys", "create", "--name", "backend").startswith("ap_")
    assert (tmp_path / "data" / "agent-platform.db").exists()


@pytest.mark.postgres
def test_installed_command_migrates_postgres(
    command: Path, postgres: Postgres, tmp_path: Path
) -> None:
    name = f"wheel_{uuid4().hex[:12]}"
    postgres.server.create_database(name)
    run(command, tmp_path, "migrate", DATABASE_URL=postgres.server.url(name))
    postgres.server.execute(
        f"SELECT 1 / count(*) FROM agent_platform.alembic_version WHERE version_num = '{REVISION}'",  # noqa: S608  # ours
        name,
    )
    postgres.server.drop_database(name)

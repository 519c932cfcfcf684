"""Two replicas behind a real nginx, with the settings of docs/scaling.md, restarted in turn.

`ROLLING_RESTART_SECONDS=60` runs the full form: 20 clients, restarts until the time is over.
"""

import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import IN_CI, Postgres
from tests.support import planted_secrets
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess
from tests.support.sse import parse

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).parents[2]
FULL_SECONDS = float(os.environ.get("ROLLING_RESTART_SECONDS", "0"))
CLIENTS = 20 if FULL_SECONDS else 8
PAUSE_SECONDS = 10 if FULL_SECONDS else 2
ADMIN = {"Authorization": f"Bearer {planted_secrets.ADMIN_KEY}"}
ANSWER = "one two three four five six"
RETRIES = 20


def nginx_program() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        if IN_CI:
            raise AssertionError("nginx is missing")
        pytest.skip("nginx is not installed: `apt install nginx-light` (Debian, Ubuntu)")
    return found


@contextmanager
def nginx(folder: Path, port: int, replicas: list[ServerProcess]) -> Generator[None]:
    """Run nginx with the block of docs/scaling.md; only addresses are replaced."""
    program = nginx_program()
    page = (ROOT / "docs" / "scaling.md").read_text()
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for index, replica in enumerate(replicas):
        block = block.replace(f"10.0.0.1{index + 1}:8000", f"127.0.0.1:{replica.port}")
    block = block.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    assert "10.0.0." not in block
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off;\n{user}\nworker_processes 1;\npid {folder}/nginx.pid;\n"
        f"error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{block}}}\n"
    )
    command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c"]
    with subprocess.Popen([*command, str(configuration)]) as process:
        try:
            wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"))
            yield
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/ready", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def wait_until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for what another process does; there is no event to wait for."""
    give_up_at = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


class Client:
    """Sends turns until it is stopped: every second one as a stream."""

    def __init__(self, url: str, agent_id: str, *, is_careful: bool) -> None:
        """A careful one sends keys, tries again what failed, and resumes its streams."""
        self.is_careful = is_careful
        self.results: Counter[str] = Counter()
        self._url = url
        self._agent_id = agent_id

    def run(self, is_over: threading.Event) -> None:
        with httpx2.Client(base_url=self._url, headers=ADMIN, timeout=60) as client:
            made = client.post("/sessions", json={"agent_id": self._agent_id})
            session_id = made.json()["id"]
            while not is_over.is_set():
                body = {"session_id": session_id, "content": "Count."}
                for send in (self._send, self._stream):
                    headers = {"Idempotency-Key": uuid4().hex} if self.is_careful else {}
                    self.results[self._try(lambda: send(client, body, headers))] += 1  # noqa: B023

    def _try(self, send: Callable[[], str]) -> str:
        result = ""
        for _ in range(RETRIES if self.is_careful else 1):
            try:
                result = send()
            except httpx2.TransportError as error:
                result = type(error).__name__
            if result == "completed":
                break
        return result

    def _send(self, client: httpx2.Client, body: dict[str, str], headers: dict[str, str]) -> str:
        response = client.post("/messages/text", json=body, headers=headers)
        if response.status_code != 200:
            return f"{response.status_code} {response.text}"
        return response.json()["status"]

    def _stream(self, client: httpx2.Client, body: dict[str, str], headers: dict[str, str]) -> str:
        accept = {"Accept": "text/event-stream"}
        response = client.post("/messages/text", json=body, headers=headers | accept)
        if response.status_code != 200:
            return f"{response.status_code} {response.text}"
        events = parse(response.text.splitlines())
        turn_id = events[0].data["turn_id"]
        while events[-1].type == "server.draining" and self.is_careful:
            known = [event.id for event in events if event.id]
            resume = {"Last-Event-ID": str(known[-1])}
            resumed = client.get(f"/turns/{turn_id}/events", headers=resume)
            if resumed.status_code != 200:
                return f"{resumed.status_code} {resumed.text}"
            events += parse(resumed.text.splitlines())
        return "completed" if events[-1].type == "turn.completed" else str(events[-1].type)


@pytest.fixture
def replicas(postgres: Postgres, tmp_path: Path) -> Iterator[list[ServerProcess]]:
    name = f"rolling_{uuid4().hex[:12]}"
    postgres.server.create_database(name)
    with Provider() as provider:
        provider.chat.text = ANSWER
        provider.chat.first_byte_delay_seconds = 0.5  # leaves the machine time for the restarts
        provider.chat.token_delay_seconds = 0.1
        made: list[ServerProcess] = []
        for number in range(2):
            folder = tmp_path / f"replica-{number}"
            folder.mkdir()
            made.append(
                ServerProcess(
                    folder,
                    DATABASE_URL=postgres.pooler.url(name),
                    OPENAI_API_KEY="sk-planted-in-the-test",
                    OPENAI_BASE_URL=provider.base_url,
                    LOG_LEVEL="info",
                )
            )
        with made[0], made[1]:
            yield made
    postgres.server.drop_database(name)


def test_clients_of_two_replicas_notice_nothing_of_a_rolling_restart(
    replicas: list[ServerProcess], tmp_path: Path
) -> None:
    port = ServerProcess(tmp_path).port
    url = f"http://127.0.0.1:{port}"
    with nginx(tmp_path, port, replicas):
        agent_id = httpx2.post(
            f"{url}/agents", json={"name": "Ada"}, headers=ADMIN, timeout=120
        ).json()["id"]
        clients = [Client(url, agent_id, is_careful=index % 2 == 0) for index in range(CLIENTS)]
        is_over = threading.Event()
        threads = [threading.Thread(target=client.run, args=(is_over,)) for client in clients]
        for thread in threads:
            thread.start()
        begun_at = time.monotonic()
        try:
            wait_until(lambda: all(client.results for client in clients))
            while True:
                for replica in replicas:
                    replica.stop()
                    replica.start()
                    time.sleep(PAUSE_SECONDS)  # as docs/deployment.md asks for
                if time.monotonic() > begun_at + FULL_SECONDS:
                    break
        finally:
            is_over.set()
            for thread in threads:
                thread.join(120)
    naive = sum((each.results for each in clients if not each.is_careful), Counter[str]())
    careful = sum((each.results for each in clients if each.is_careful), Counter[str]())
    print(f"\nrolling restart: naive {dict(naive)}, careful {dict(careful)}")  # noqa: T201

    assert set(careful) == {"completed"}, careful
    assert set(naive) <= {"completed", "server.draining"}, naive
    assert naive["completed"] > CLIENTS

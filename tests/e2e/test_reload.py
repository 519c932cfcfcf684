"""SIGHUP to `serve --workers`: new settings, new workers, and no request that fails."""

import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import Postgres
from tests.e2e.test_workers import Talk, one_client_each, talk_slowly, workers
from tests.support.processes import send_signal
from tests.support.provider import Provider
from tests.support.server_process import COMMAND, ServerProcess, open_session

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who has a connection"),
]

CLIENTS = 6
RELOAD_SECONDS = 120
REPLACED = "Every worker is replaced"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def server(
    postgres: Postgres, postgres_template: str, provider: Provider, tmp_path: Path
) -> Iterator[ServerProcess]:
    provider.reset()
    name = f"reload_{uuid4().hex[:12]}"
    postgres.server.create_database(name, postgres_template)
    (tmp_path / ".env").write_text(
        "WORKERS=2\nCHAT_MODEL=first-model\nLIMIT_REQUESTS_PER_MINUTE=0\n"
    )
    with ServerProcess(
        tmp_path,
        command=COMMAND,
        DATABASE_URL=postgres.pooler.url(name),
        OPENAI_API_KEY="sk-planted-in-the-test",
        OPENAI_BASE_URL=provider.base_url,
        LIMIT_REQUESTS_PER_MINUTE="0",
    ) as server:
        yield server
    postgres.server.drop_database(name)


def wait_until(is_so: Callable[[], bool], server: ServerProcess) -> None:
    """Wait for what another process does; there is no event to wait for."""
    give_up_at = time.monotonic() + RELOAD_SECONDS
    while not is_so():
        assert time.monotonic() < give_up_at, server.log()
        time.sleep(0.02)


class Crowd:
    """Clients that send turns without a pause and without retries, until they are stopped."""

    def __init__(self, server: ServerProcess) -> None:
        self.results: Counter[str] = Counter()
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(server, index % 2 == 0))
            for index in range(CLIENTS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, server: ServerProcess, keeps_connection: bool) -> None:
        with server.client() as kept:
            session_id = open_session(kept)
            while not self._is_over.is_set():
                with ExitStack() as stack:
                    client = kept if keeps_connection else stack.enter_context(server.client())
                    self._send(client, session_id)

    def _send(self, client: httpx2.Client, session_id: str) -> None:
        body = {"session_id": session_id, "content": "Hi"}
        try:
            response = client.post("/messages/text", json=body)
            result = str(response.status_code)
        except httpx2.TransportError as error:
            result = type(error).__name__
        self.results[result] += 1


def reload_and_wait(server: ServerProcess) -> None:
    assert server.process is not None
    times = server.log().count(REPLACED)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log().count(REPLACED) > times, server)


def test_workers_are_replaced_one_after_the_other_and_no_request_fails(
    server: ServerProcess, provider: Provider
) -> None:
    provider.chat.first_byte_delay_seconds = 0.25  # leaves the machine time for the new workers
    before = workers(server)
    with Crowd(server) as crowd:
        wait_until(lambda: crowd.results["200"] > CLIENTS, server)
        reload_and_wait(server)
        between = workers(server)
        reload_and_wait(server)  # a supervisor that replaced itself can do so again
        seen = crowd.results["200"]
        wait_until(lambda: crowd.results["200"] > seen + CLIENTS, server)
    after = workers(server)

    assert set(crowd.results) == {"200"}, crowd.results
    assert len(before) == len(between) == len(after) == 2
    assert not before & between
    assert not between & after
    assert server.stop() == 0


def test_new_settings_hold_after_it_and_a_running_stream_ends_as_usual(
    server: ServerProcess, provider: Provider
) -> None:
    with ExitStack() as stack:
        first, _ = one_client_each(server, stack)
        session_id = open_session(first)
        talk_slowly(provider)
        talk = Talk(first, session_id)
        assert talk.turn_id
        (server.folder / ".env").write_text("WORKERS=3\nCHAT_MODEL=second-model\n")
        reload_and_wait(server)
        events = talk.events()
        provider.reset()
        with server.client() as client:
            client.post("/messages/text", json={"session_id": session_id, "content": "And now?"})

    assert events[-1].type == "turn.completed"
    assert len(workers(server)) == 3
    (received,) = provider.to("chat")
    assert received.body["model"] == "second-model"


@pytest.mark.parametrize("settings", ["PORT=http\n", "WORKERS=2\nDATABASE_POOL_SIZE=0\n"])
def test_wrong_settings_leave_the_workers_as_they_are(server: ServerProcess, settings: str) -> None:
    before = workers(server)
    (server.folder / ".env").write_text(settings)
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    # `PORT` is set in the environment, which comes first.
    refused = "The new start failed" if "POOL" in settings else REPLACED
    wait_until(lambda: refused in server.log(), server)

    assert (workers(server) == before) == ("POOL" in settings)
    assert server.is_ready()
    assert server.stop() == 0


def test_killed_worker_of_before_is_replaced_after_a_refused_reload(
    server: ServerProcess,
) -> None:
    before = workers(server)
    (server.folder / ".env").write_text("DATABASE_POOL_SIZE=0\n")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "The new start failed" in server.log(), server)
    send_signal(max(before), signal.SIGKILL)
    wait_until(lambda: len(workers(server) - before) == 1, server)

    assert server.is_ready()

"""`serve` with two workers on one port and one database, behind a transaction pooler."""

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import Postgres
from tests.support.processes import send_signal
from tests.support.provider import Provider
from tests.support.server_process import COMMAND, ServerProcess, open_session
from tests.support.sse import Event, parse, text_of

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who has a connection"),
]

SSE = {"accept": "text/event-stream"}
TAKEOVER_SECONDS = 120
"""It only ends a test that fails: a lease runs out within six seconds."""
CONNECTIONS_LIMIT = 200
_ESTABLISHED = "01"
"""Not one of before, whose ports are used again while it waits for its end."""


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def server(postgres: Postgres, provider: Provider, tmp_path: Path) -> Iterator[ServerProcess]:
    """Two workers on a database without any tables."""
    provider.reset()
    name = f"workers_{uuid4().hex[:12]}"
    postgres.server.create_database(name)
    with ServerProcess(
        tmp_path,
        command=COMMAND,
        WORKERS="2",
        DATABASE_URL=postgres.pooler.url(name),
        OPENAI_API_KEY="sk-planted-in-the-test",
        OPENAI_BASE_URL=provider.base_url,
    ) as server:
        yield server
    postgres.server.drop_database(name)


def workers(server: ServerProcess) -> set[int]:
    """Return the process ids of the server's children."""
    assert server.process is not None
    parent = server.process.pid
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


def worker_of(server: ServerProcess, client: httpx2.Client) -> int:
    """Return the process id of the worker that has the client's connection."""
    response = client.get("/health/live")
    its_socket: socket.socket = response.extensions["network_stream"].get_extra_info("socket")
    ours = f"0100007F:{its_socket.getsockname()[1]:04X}"
    theirs = f"0100007F:{server.port:04X}"
    (inode,) = {  # a table that changes while it is read may show a line twice
        fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines())
        if fields[1:4] == [theirs, ours, _ESTABLISHED]
    }
    for pid in workers(server):
        for number in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if number.readlink() == Path(f"socket:[{inode}]"):
                    return pid
    raise AssertionError("no worker has the connection")


def one_client_each(server: ServerProcess, stack: ExitStack) -> tuple[httpx2.Client, httpx2.Client]:
    """Return a client of each worker; a client keeps its connection."""
    found: dict[int, httpx2.Client] = {}
    for _ in range(CONNECTIONS_LIMIT):
        client = stack.enter_context(server.client())
        found.setdefault(worker_of(server, client), client)
        if len(found) == 2:
            first, second = found.values()
            return first, second
    raise AssertionError("one worker has every connection")


def talk_slowly(provider: Provider) -> None:
    provider.chat.text = "one two three four five six seven eight nine ten"
    provider.chat.token_delay_seconds = 0.2


class Talk:
    """A streamed turn on one client's connection, in a thread."""

    def __init__(self, client: httpx2.Client, session_id: str) -> None:
        self.lines: list[str] = []
        self.is_broken = False
        self._created = threading.Event()
        self._client = client
        self._session_id = session_id
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def turn_id(self) -> str:
        """The turn's id, once it is accepted."""
        assert self._created.wait(60)
        return parse([*self.lines[:3], ""])[0].data["turn_id"]

    def events(self) -> list[Event]:
        """Return everything, once the stream has ended."""
        self.wait()
        return parse(self.lines)

    def wait(self) -> None:
        """Wait until the stream has ended, or is broken."""
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        body = {"session_id": self._session_id, "content": "Count."}
        try:
            with self._client.stream("POST", "/messages/text", json=body, headers=SSE) as response:
                for line in response.iter_lines():
                    self.lines.append(line)
                    if len(self.lines) > 3:
                        self._created.set()
        except httpx2.TransportError:
            self.is_broken = True


def test_turns_streams_and_cancels_cross_from_one_worker_to_the_other(
    server: ServerProcess, provider: Provider
) -> None:
    with ExitStack() as stack:
        first, second = one_client_each(server, stack)
        session_id = open_session(first)
        talk_slowly(provider)
        talk = Talk(first, session_id)
        followed = second.get(f"/turns/{talk.turn_id}/events")
        resumed = second.get(f"/turns/{talk.turn_id}/events", headers={"Last-Event-ID": "4"})
        told = talk.events()
        cut_short = Talk(first, session_id)
        cancelled = second.post(f"/turns/{cut_short.turn_id}/cancel")
        provider.reset()
        body = {"session_id": session_id, "content": "And now?"}
        replies = [client.post("/messages/text", json=body) for client in (second, first)]
        history = second.get(f"/sessions/{session_id}").json()["messages"]

    assert told[-1].type == "turn.completed"
    assert text_of(told) == "one two three four five six seven eight nine ten"
    assert parse(followed.text.splitlines()) == told
    assert parse(resumed.text.splitlines()) == told[4:]
    assert cancelled.status_code == 200
    assert cut_short.events()[-1].type == "turn.cancelled"
    assert [reply.json()["seq"] for reply in replies] == [6, 8]
    assert [message["seq"] for message in history] == list(range(1, 9))
    assert server.log().count("Upgrading the database") == 1


def test_sigterm_ends_both_workers_and_their_streams_within_the_time_there_is(
    server: ServerProcess, provider: Provider
) -> None:
    with ExitStack() as stack:
        clients = one_client_each(server, stack)
        sessions = [open_session(client) for client in clients]
        talk_slowly(provider)
        talks = [Talk(*each) for each in zip(clients, sessions, strict=True)]
        turn_ids = [talk.turn_id for talk in talks]
        pids = workers(server)
        status = server.stop()  # which waits for 35 s and no longer
        ends = [talk.events()[-1].type for talk in talks]

        assert status == 0
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert set(ends) <= {"server.draining", "turn.completed"}
        assert not any(talk.is_broken for talk in talks)
        server.start()
        with server.client() as client:
            for turn_id in turn_ids:  # finished before the end, or taken up again
                followed = parse(client.get(f"/turns/{turn_id}/events").text.splitlines())
                assert followed[-1].type == "turn.completed"


def test_killed_worker_is_replaced_and_its_turn_is_finished_by_another(
    server: ServerProcess, provider: Provider
) -> None:
    with ExitStack() as stack:
        first, second = one_client_each(server, stack)
        session_id = open_session(second)
        talk_slowly(provider)
        killed = worker_of(server, first)
        before = workers(server)
        talk = Talk(first, session_id)
        turn_id = talk.turn_id
        send_signal(killed, signal.SIGKILL)
        talk.wait()
        with second.stream("GET", f"/turns/{turn_id}/events", timeout=TAKEOVER_SECONDS) as response:
            followed = parse(response.iter_lines())
        history = second.get(f"/sessions/{session_id}").json()["messages"]
        third, fourth = one_client_each(server, stack)
        answers = [client.get(f"/turns/{turn_id}").json() for client in (third, fourth)]

    assert talk.is_broken
    assert followed[-1].type == "turn.completed"
    assert [message["status"] for message in history] == ["completed", "completed"]
    assert history[1]["content"] == "one two three four five six seven eight nine ten"
    assert [answer["status"] for answer in answers] == ["completed", "completed"]
    assert killed not in workers(server)
    assert len(workers(server)) == len(before) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"OPENAI_API_KEY": "k"}, "A SQLite file is served by one process: set WORKERS=1"),
        ({"DATABASE_URL": "postgresql://u@127.0.0.1:1/db"}, "The embedded engine uses every core"),
        (
            {"DATABASE_URL": "postgresql://u@127.0.0.1:1/db", "OPENAI_API_KEY": "k"},
            "The database cannot be reached",
        ),
    ],
)
def test_workers_are_refused_with_a_sentence(
    tmp_path: Path, settings: dict[str, str], says: str
) -> None:
    server = ServerProcess(tmp_path, command=COMMAND, WORKERS="2", **settings)

    assert server.launch().wait(300) > 0
    assert says in server.log()
    assert "Traceback" not in server.log()


def test_port_that_another_server_has_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        server = ServerProcess(
            tmp_path,
            command=COMMAND,
            WORKERS="2",
            DATABASE_URL="postgresql://u@127.0.0.1:1/db",
            OPENAI_API_KEY="k",
            PORT=str(other.getsockname()[1]),
        )

        assert server.launch().wait(300) > 0
    assert "Cannot listen on 127.0.0.1 port" in server.log()
    assert "Traceback" not in server.log()


def test_metrics_are_those_of_every_worker_whoever_is_asked(server: ServerProcess) -> None:
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        session_id = open_session(client)
        for _ in range(3):
            client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
        texts = [httpx2.get(f"{server.url}/metrics", timeout=120).text for _ in range(6)]

    for text in texts:
        lines = text.splitlines()
        told = {line for line in lines if line.startswith("agent_platform_build_info{")}
        turns = [line for line in lines if line.startswith("agent_platform_turns_total{")]
        assert {pid for pid in workers(server) if f'worker="{pid}"' in "".join(told)} == workers(
            server
        )
        assert sum(float(line.rpartition(" ")[2]) for line in turns) == 3


def test_metrics_leave_out_a_worker_that_was_killed(server: ServerProcess) -> None:
    before = workers(server)
    victim = min(before)
    send_signal(victim, signal.SIGKILL)
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while len(workers(server) - {victim}) < len(before):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    with suppress(httpx2.TransportError):
        httpx2.get(f"{server.url}/metrics", timeout=120)
    text = httpx2.get(f"{server.url}/metrics", timeout=120).text

    assert f'worker="{victim}"' not in text
    assert 'worker="' in text

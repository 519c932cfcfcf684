"""SIGTERM: turns that run here end as usual, new ones are refused, and idle servers are gone."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.e2e.test_workers import Talk, talk_slowly
from tests.support.planted_secrets import PROVIDER_KEY as KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess, open_session
from tests.support.sse import text_of


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def server(provider: Provider, tmp_path: Path) -> Iterator[ServerProcess]:
    provider.reset()
    with ServerProcess(tmp_path, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=provider.base_url) as server:
        yield server


def test_stream_of_a_running_turn_ends_as_usual_and_new_turns_are_refused(
    server: ServerProcess, provider: Provider
) -> None:
    talk_slowly(provider)
    provider.chat.token_delay_seconds = 0.4
    assert server.process is not None
    with server.client() as client, server.client() as other:
        session_id, second_id = open_session(client), open_session(client)
        talk = Talk(other, session_id)
        assert talk.turn_id
        server.process.send_signal(signal.SIGTERM)
        while client.get("/health/ready").status_code == 200:
            pass
        with server.client() as newcomer:
            readiness = newcomer.get("/health/ready")
            body = {"session_id": second_id, "content": "Hi"}
            refused = newcomer.post("/messages/text", json=body)
        events = talk.events()

    assert events[-1].type == "turn.completed"
    assert text_of(events) == provider.chat.text
    assert readiness.status_code == 503
    assert refused.status_code == 503
    assert refused.json()["code"] == "server-draining"
    assert int(refused.headers["retry-after"]) >= 1
    assert server.process.wait(10) in {0, -signal.SIGTERM}


def test_stream_whose_turn_is_too_long_is_told_to_come_back_and_resumed(
    server: ServerProcess, provider: Provider
) -> None:
    provider.chat.text = "word " * 400
    provider.chat.token_delay_seconds = 0.2
    with server.client() as client:
        talk = Talk(client, open_session(client))
        turn_id = talk.turn_id
        begun_at = time.monotonic()
        status = server.stop()
        seconds = time.monotonic() - begun_at
        events = talk.events()

    assert status in {0, -signal.SIGTERM}
    assert 20 < seconds < 30
    assert events[-1].type == "server.draining"
    provider.reset()
    server.start()
    with server.client() as client:
        assert client.get(f"/turns/{turn_id}/events").text.count("turn.completed") == 1


def test_idle_server_with_open_connections_ends_at_once(server: ServerProcess) -> None:
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        client.get("/health/live")
        begun_at = time.monotonic()
        status = server.stop()

    assert status in {0, -signal.SIGTERM}
    assert time.monotonic() - begun_at < 5

"""What the OpenAPI document promises, tried with generated requests, right and wrong ones."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import Postgres
from tests.support.planted_secrets import PROVIDER_KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess, open_session

pytestmark = pytest.mark.timeout(600)  # hundreds of requests, on a machine that may be busy


@contextmanager
def _server(folder: Path, database_url: str) -> Generator[ServerProcess]:
    limits = {f"LIMIT_{name}": "0" for name in ("REQUESTS_PER_MINUTE", "CONCURRENT_TURNS")}
    with (
        Provider() as provider,
        ServerProcess(
            folder,
            DATABASE_URL=database_url,
            OPENAI_API_KEY=PROVIDER_KEY,
            OPENAI_BASE_URL=provider.base_url,
            TTS_MODEL="tts-test",
            **limits,
        ) as server,
    ):
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[ServerProcess]:
    if request.param == "sqlite":
        with _server(tmp_path, "") as server:
            yield server
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = f"schema_{uuid4().hex[:12]}"
    postgres.server.create_database(name, request.getfixturevalue("postgres_template"))
    with _server(tmp_path, postgres.pooler.url(name)) as server:
        yield server
    postgres.server.drop_database(name)


def _names(server: ServerProcess) -> dict[str, str]:
    """Make one of each thing that paths and bodies name."""
    with server.client() as client:
        session_id = open_session(client)
        said = client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
        session = client.get(f"/sessions/{session_id}").json()
        key = client.post("/keys", json={"name": "k", "scopes": ["usage:read"]}).json()
    return {
        "session_id": session_id,
        "turn_id": said.json()["turn_id"],
        "agent_id": session["agent_id"],
        "key_id": key["id"],
        "version": "1",
    }


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_request_is_answered_as_documented(server: ServerProcess, mode: str) -> None:
    from tests.e2e import generated_requests  # it loads slowly, and nobody else needs it

    tried = generated_requests.try_all(mode, server.url, _names(server))

    with server.client() as client:
        assert client.get("/openapi.json").json() == generated_requests.document()
    assert tried > 200
    assert "Traceback" not in server.log()

"""What the OpenAPI document promises, tried with generated requests, right and wrong ones."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeArgument=false
# pyright: reportUnknownArgumentType=false, reportArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUntypedFunctionDecorator=false

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.canaries import PROVIDER_KEY, search_answer
from tests.conftest import Postgres
from tests.e2e.server import ServerProcess, open_session
from tests.provider import Provider

EXAMPLES = 25
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


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
    postgres.server.create_database(name)
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


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_request_is_answered_as_documented(
    server: ServerProcess, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    known = _names(server)
    tried = 0

    def name_something(case: Case, number: int) -> None:
        """Let every second request name what is there, so that it gets further than a 404."""
        if number % 2 or not case.path_parameters:
            return
        parameters: dict[str, Any] = case.path_parameters
        parameters.update({name: known[name] for name in parameters if name in known})

    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def try_operation(case: Case) -> None:
            nonlocal tried
            tried += 1
            if case.method != "DELETE":
                name_something(case, tried)
            response = case.call_and_validate(checks=_CHECKS)
            headers = [
                (name.encode(), ", ".join(values).encode())
                for name, values in response.headers.items()
            ]
            path = urlsplit(response.request.url or "").path
            search_answer(case.method, path, response.status_code, headers, response.content)

        try_operation()

    assert tried > 200
    assert "Traceback" not in server.log()

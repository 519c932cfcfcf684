"""A server that listens on every address, with nothing else set: closed, but to its own machine."""

import socket
import stat
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.files.made import png
from tests.identity.test_matrix import ROWS, openai_ids
from tests.support import planted_secrets
from tests.support.application import AUDIO
from tests.support.provider import Provider
from tests.support.server_process import BareServerProcess, ServerProcess

LOCAL = "127.0.0.1"
FOREIGN_NAMES = ("evil.example", "localhost.evil.example", "192.0.2.7")
FORWARDING = (
    "X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host", "X-Forwarded-Proto",
    "CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "X-Original-Forwarded-For",
)  # fmt: skip


def outer_address() -> str | None:
    """Return an address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            found: str = probe.getsockname()[0]
        except OSError:  # no route
            found = socket.gethostbyname(socket.gethostname())
    return None if found.startswith(("127.", "0.")) else found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`HOST=0.0.0.0`, and where models are: without a provider it would need the embedded ones."""
    with (
        Provider() as provider,
        BareServerProcess(
            tmp_path_factory.mktemp("open"),
            HOST="0.0.0.0",
            OPENAI_BASE_URL=provider.base_url,
            TTS_MODEL="tts-test",
            LIMIT_REQUESTS_PER_MINUTE="0",
        ) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> dict[str, str]:
    """The header with the key that the first start made."""
    path = server.data_dir / "admin.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return {"Authorization": f"Bearer {path.read_text().strip()}"}


@pytest.fixture(params=["by another address", "by a foreign name"])
def stranger(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[httpx2.Client]:
    """A client that is not on the server's own machine, as far as the server can tell.

    A container may have no address but loopback: 127.0.0.2 with a foreign name stands for one.
    """
    address = outer_address() if "address" in request.param else None
    headers = {} if address else {"Host": "agents.example"}
    url = f"http://{address or '127.0.0.2'}:{server.port}"
    transport = planted_secrets.WatchedTransport()
    with httpx2.Client(base_url=url, headers=headers, transport=transport, timeout=60) as client:
        yield client


STATUSES = {
    "POST /mcp-servers": 422,  # nothing answers there
    "DELETE /files/{file_id}": 204,  # of a file that no message uses
}


def assert_closed(response: httpx2.Response, what: object) -> None:
    assert response.status_code == 401, (what, response.text)
    if "/api/chat" in str(what):
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        return
    if "/v1/" in str(what):
        assert response.json()["error"]["code"] == "invalid_api_key"
        return
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["code"] == "unauthenticated"


def things(client: httpx2.Client, admin: dict[str, str]) -> dict[str, str]:
    """Make one of each thing that endpoints name."""

    def make(path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401  # JSON
        response = client.post(path, json=body, headers=admin)
        assert response.status_code in {200, 201}, response.text
        return response.json()

    agent = make("/agents", {"name": "Ada"})
    session = make("/sessions", {"agent_id": agent["id"], "user_id": "alice"})
    reply = make("/messages/text", {"session_id": session["id"], "content": "Hi"})
    key = make("/keys", {"name": "k", "scopes": ["usage:read"]})
    name = f"K_{key['id']}"
    make("/secrets", {"name": name, "value": "12345678", "hosts": ["api.example.com"]})
    tool = make("/tools", {"name": f"t_{key['id']}", "description": "T.", "kind": "client"})
    files = {"file": ("x.png", png())}
    file = client.post("/files", files=files, headers=admin).json()
    return {
        "agent_id": agent["id"],
        "session_id": session["id"],
        "turn_id": reply["turn_id"],
        "key_id": key["id"],
        "tool_id": tool["id"],
        "call_id": str(uuid4()),
        "server_id": str(uuid4()),
        "file_id": file["id"],
        "model": agent["id"],
        "agent": agent["id"],
        "chat_id": session["id"],
        "name": name,
        "secret_name": name,
        "version": "1",
        "user_id": "alice",
        **openai_ids(session["id"], reply["turn_id"], reply["id"]),
    }


def ask(
    client: httpx2.Client, name: str, known: dict[str, str], headers: dict[str, str]
) -> httpx2.Response:
    """Send a request that works to one endpoint."""
    row = ROWS[name]
    method, _, path = name.partition(" ")

    def fill(body: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value.format(**known) if isinstance(value, str) else value
            for key, value in body.items()
        }

    content: dict[str, Any] = {}
    if row.json is not None:
        content["json"] = fill(row.json)
    if row.form is not None:
        sound = ("x.wav", (AUDIO / "anna_01.wav").read_bytes())
        uploads = {"/files": ("x.png", png()), "/v1/audio/transcriptions": sound}
        upload = {"file": uploads[path]} if path in uploads else {"audio": sound}
        content = {"data": fill(row.form), "files": upload}
    return client.request(method, path.format(**known) + row.query, headers=headers, **content)


def test_every_endpoint_is_closed_without_the_key_and_open_with_it(
    stranger: httpx2.Client, admin: dict[str, str]
) -> None:
    for name, row in ROWS.items():
        known = things(stranger, admin)
        assert_closed(ask(stranger, name, known, {}), name)
        assert_closed(ask(stranger, name, known, {"Authorization": "Bearer guess"}), name)
        response = ask(stranger, name, known, admin)
        expected = STATUSES.get(name, row.status)
        if "{call_id}" in name or "{server_id}" in name:  # a model makes calls, and no server is up
            expected = 404
        if name == "POST /tools" and response.status_code == HTTPStatus.CONFLICT:
            continue  # it was made by the other address
        assert response.status_code == expected, (name, response.text)
    for path in ("/docs", "/redoc", "/openapi.json", "/assets/swagger-ui.css", "/nowhere"):
        assert_closed(stranger.get(path), path)
    for path in ("/docs", "/redoc", "/openapi.json", "/assets/swagger-ui.css"):
        assert stranger.get(path, headers=admin).status_code == 200
    for path in ("/health", "/health/live", "/health/ready"):
        assert stranger.get(path).status_code == 200
    assert stranger.get("/").status_code == 200


def test_stranger_does_not_come_in_by_calling_itself_local(stranger: httpx2.Client) -> None:
    for name in FORWARDING:
        for value in (LOCAL, "::1", "for=127.0.0.1;host=localhost"):
            headers = {name: value}
            assert_closed(stranger.get("/agents", headers=headers), headers)
    for headers in ({"Origin": "http://localhost"}, {"Referer": "http://localhost/"}):
        assert_closed(stranger.get("/agents", headers=headers), headers)


def test_other_address_does_not_come_in_by_a_local_name(server: ServerProcess) -> None:
    address = outer_address()
    if address is None:  # then no peer is foreign, and the name alone decides
        address, names = "127.0.0.2", FOREIGN_NAMES
    else:
        names = ("localhost", LOCAL, f"localhost:{server.port}", "[::1]", *FOREIGN_NAMES)
    for name in names:
        answer = raw(address, server.port, f"GET /agents HTTP/1.1\r\nHost: {name}")
        assert answer.startswith(b"HTTP/1.1 401 "), (name, answer)


@pytest.fixture
def here(server: ServerProcess) -> Iterator[httpx2.Client]:
    """A client on the server's own machine, by loopback."""
    with server.client() as client:
        yield client


def test_own_machine_needs_no_key(here: httpx2.Client) -> None:
    assert here.get("/agents").status_code == 200
    assert here.get("/agents", headers={"Origin": "http://localhost:3000"}).status_code == 200


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_dns_rebinding_is_refused(here: httpx2.Client, name: str, admin: dict[str, str]) -> None:
    for host in (name, f"{name}:8000", f"LOCALHOST.{name}"):
        assert_closed(here.get("/agents", headers={"Host": host}), host)
        assert here.get("/agents", headers={"Host": host} | admin).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example"]
)
def test_page_of_another_site_is_refused_and_told_nothing(here: httpx2.Client, origin: str) -> None:
    for method, path in (("GET", "/agents"), ("POST", "/messages/text"), ("OPTIONS", "/agents")):
        response = here.request(method, path, headers={"Origin": origin})
        assert_closed(response, (method, path))
        assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("header", FORWARDING)
def test_proxy_on_the_own_machine_makes_nobody_local(here: httpx2.Client, header: str) -> None:
    assert_closed(here.get("/agents", headers={header: LOCAL}), header)
    assert_closed(here.get("/agents", headers={header.lower(): "unknown"}), header)


@pytest.mark.parametrize(
    "head",
    [
        "GET /agents HTTP/1.0",
        "GET /agents HTTP/1.1\r\nHost:",
        "GET http://localhost/agents HTTP/1.1\r\nHost: evil.example",
        "GET /agents HTTP/1.1\r\nHost: localhost@evil.example",
        "GET /agents HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost",
        "GET /agents HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example",
        "GET /agents HTTP/1.1\r\nHost: localhost\r\nx-forwarded-for:",
    ],
)
def test_odd_request_from_the_own_machine_is_not_local(server: ServerProcess, head: str) -> None:
    answer = raw(LOCAL, server.port, head)
    assert answer.split(b" ")[1] in {b"401", b"400"}, answer


def raw(address: str, port: int, head: str) -> bytes:
    """Send these lines as they are; return the answer."""
    with socket.create_connection((address, port), timeout=60) as connection:
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_log_says_where_the_key_is_and_not_what_it_is(
    server: ServerProcess, admin: dict[str, str]
) -> None:
    assert str(Path("data") / "admin.key") in server.log()
    assert admin["Authorization"].removeprefix("Bearer ") not in server.log()

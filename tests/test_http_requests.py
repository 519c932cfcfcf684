"""What clients and proxies send that is unusual, to a real server over real sockets."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
from starlette.types import Scope

from app.http.local_requests import is_local_request
from tests.support import planted_secrets
from tests.support.server_process import ServerProcess

BODY = b'{"name": "Ada", "system_prompt": ""}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(folder, OPENAI_BASE_URL="http://127.0.0.1:9/v1") as running:
        yield running


def exchange(port: int, *requests: bytes) -> bytes:
    """Send bytes over one connection and return all that is answered until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for request in requests:
            connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def request(
    method: str, path: str, body: bytes = b"", headers: tuple[str, ...] = (), *, last: bool = True
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append("Host: localhost")
    if body and not any(line.lower().startswith("transfer-encoding") for line in headers):
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    if last:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


FOLLOW_UP = request("GET", "/health")
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")


@pytest.mark.parametrize("split", [0, 1, 10, 1000])
def test_body_of_a_request_that_offers_http2_is_read(server: ServerProcess, split: int) -> None:
    sent = request("POST", "/agents", BODY, UPGRADE, last=False)
    head, _, body = sent.partition(b"\r\n\r\n")
    pieces = [head + b"\r\n\r\n" + body[:split], body[split:]]
    answer = exchange(server.port, *[piece for piece in pieces if piece], FOLLOW_UP)

    assert answer.startswith(b"HTTP/1.1 201")
    assert b"HTTP/1.1 200" in answer


def test_chunked_body_of_a_request_that_offers_http2_is_read(server: ServerProcess) -> None:
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    headers = (*UPGRADE, "Transfer-Encoding: chunked", "Content-Type: application/json")

    answer = exchange(
        server.port,
        request("POST", "/agents", chunked, headers, last=False),
        request("GET", "/health"),
    )

    assert answer.startswith(b"HTTP/1.1 201")


def test_request_without_a_body_may_offer_http2(server: ServerProcess) -> None:
    answer = exchange(
        server.port,
        request("GET", "/agents", headers=UPGRADE, last=False),
        request("GET", "/health"),
    )

    assert answer.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "trailer", ["Authorization: Bearer x", "X-Workspace-Id: 1", "Idempotency-Key: k"]
)
def test_trailers_are_not_headers(server: ServerProcess, trailer: str) -> None:
    chunked = b"%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(BODY), BODY, trailer.encode())
    headers = ("Transfer-Encoding: chunked", "Content-Type: application/json")

    answer = exchange(server.port, request("POST", "/agents", chunked, headers))

    assert answer.startswith(b"HTTP/1.1 201")


@pytest.mark.parametrize(
    "header",
    ["Host: localhost", "Authorization: Bearer a", "Idempotency-Key: a", "Content-Type: text/plain",
     "X-Workspace-Id: a", "Last-Event-ID: 1"],
)  # fmt: skip
def test_header_that_must_be_unique_is_refused_twice(server: ServerProcess, header: str) -> None:
    twice = (header, header.replace(": a", ": b"))

    answer = exchange(server.port, request("GET", "/agents", headers=twice))

    assert answer.startswith(b"HTTP/1.1 400")
    assert b"header-repeated" in answer


@pytest.mark.parametrize("path", ["/agents/", "/health/", "/docs/", "/agents//"])
def test_path_with_a_slash_at_the_end_is_served(server: ServerProcess, path: str) -> None:
    assert exchange(server.port, request("GET", path)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/agents", "/health", "/openapi.json", "/docs"])
def test_head_is_get_without_its_body(server: ServerProcess, path: str) -> None:
    head = exchange(server.port, request("HEAD", path))
    whole = exchange(server.port, request("GET", path))

    lines, _, body = head.partition(b"\r\n\r\n")
    status, _, _ = whole.partition(b"\r\n")
    assert body == b""
    assert lines.startswith(status)
    assert b"content-length" in lines


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/agents", "GET, HEAD, POST"),
        ("POST", "/agents/01900000-0000-7000-8000-000000000001", "DELETE, GET, HEAD, PUT"),
        ("PATCH", "/messages/text", "POST"),
    ],
)
def test_refused_method_names_all_that_are_allowed(
    server: ServerProcess, method: str, path: str, allowed: str
) -> None:
    answer = exchange(server.port, request(method, path)).decode()

    found = next(line for line in answer.splitlines() if line.lower().startswith("allow:"))
    assert answer.startswith("HTTP/1.1 405")
    assert set(allowed.split(", ")) <= set(found.partition(": ")[2].split(", "))


def test_own_user_needs_no_key(server: ServerProcess) -> None:
    assert exchange(server.port, request("GET", "/agents")).startswith(b"HTTP/1.1 200")


def test_http_1_0_is_what_proxies_speak(server: ServerProcess) -> None:
    sent = b"GET /agents HTTP/1.0\r\nHost: localhost\r\n\r\n"

    assert exchange(server.port, sent).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("name", ["test", "testserver"])
def test_names_of_in_process_clients_are_not_local_over_a_network(
    server: ServerProcess, name: str
) -> None:
    answer = exchange(server.port, request("GET", "/agents", headers=(f"Host: {name}",)))

    assert answer.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1", "Via: 1.1 cache", "CF-Ray: 1",
     "X-Amzn-Trace-Id: Root=1", "ngrok-skip-browser-warning: 1", "X-Envoy-Internal: true",
     "X-Forwarded-Anything: 1", "Sec-Fetch-Site: cross-site", "X-Request-Start: t=1",
     "CDN-Loop: cloudflare", "X-Vercel-Id: 1", "Fly-Region: ams", "Tailscale-User-Login: a@b"],
)  # fmt: skip
def test_marks_of_proxies_and_other_sites_need_a_key(server: ServerProcess, header: str) -> None:
    assert exchange(server.port, request("GET", "/agents", headers=(header,))).startswith(
        b"HTTP/1.1 401"
    )


FORWARDER = """
import socket, sys, threading
target, listener = int(sys.argv[1]), socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
client, _ = listener.accept()
upstream = socket.create_connection(("127.0.0.1", target))
def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)
threading.Thread(target=pump, args=(client, upstream)).start()
pump(upstream, client)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="needs Linux and root to use another user"
)
def test_forwarder_of_another_user_adds_no_header_and_is_not_local(server: ServerProcess) -> None:
    python = shutil.which("python3", path="/usr/bin")  # one that every user may run
    assert python, "Debian's python3 is needed"
    command = [python, "-c", FORWARDER, str(server.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, user=65534) as forwarder:
        assert forwarder.stdout
        port = int(forwarder.stdout.readline())
        answer = exchange(port, request("GET", "/agents"))
        forwarder.wait(10)

    assert answer.startswith(b"HTTP/1.1 401")


def scope_of(**changes: object) -> Scope:
    asgi = {"version": "3.0", "spec_version": "2.3"}
    return {
        "type": "http", "http_version": "1.1", "asgi": asgi, "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8000), "state": {}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scope", "headers"),
    [
        (scope_of(), {b"host": b"localhost"}),  # there is no such connection
        (scope_of(client=None), {b"host": b"localhost"}),
        (scope_of(server=None), {b"host": b"localhost"}),
        (scope_of(server=("/run/x.sock", None)), {b"host": b"localhost"}),
        (scope_of(http_version="2", asgi={}), {b"host": b"localhost"}),
        (scope_of(client=("192.0.2.1", 5), asgi={}), {b"host": b"localhost"}),
    ],
)
def test_what_cannot_be_shown_to_be_local_is_not(
    scope: Scope, headers: Mapping[bytes, bytes]
) -> None:
    assert not is_local_request(scope, headers)


def test_admin_key_opens_whatever_a_request_has_passed(server: ServerProcess) -> None:
    headers = (f"Authorization: Bearer {planted_secrets.ADMIN_KEY}", "X-Forwarded-For: 192.0.2.1")

    assert exchange(server.port, request("GET", "/agents", headers=headers)).startswith(
        b"HTTP/1.1 200"
    )

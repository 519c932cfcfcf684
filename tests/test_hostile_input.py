"""Whatever is sent gets a clear 4xx: never a 500, and never an echo of the input."""

import json
from collections.abc import Iterator
from uuid import uuid4

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio

SECRET = "sk-planted-7f3a"
BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "lone surrogate": rb'{"name": "\ud800"}',
    "NUL": rb'{"name": "a\u0000b"}',
    "NaN": b'{"name": "Ada", "temperature": NaN}',
    "infinity": b'{"name": "Ada", "temperature": 1e999}',
    "huge integer": b'{"name": "Ada", "max_output_tokens": ' + b"9" * 5000 + b"}",
    "integer beyond 64 bits": b'{"name": "Ada", "max_output_tokens": 18446744073709551617}',
    "deep nesting": b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "invalid UTF-8": b'{"name": "\xff\xfe"}',
    "UTF-16": '{"name": "Ada"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"name": ""}',
    "duplicate keys": b'{"name": "", "name": ""}',
    "too large": b'{"name": "' + b"x" * 2_000_000 + b'"}',
}


def is_problem(response: httpx2.Response) -> bool:
    problem = response.json()
    assert 400 <= response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert isinstance(problem["detail"], str)
    assert problem["request_id"] == response.headers["request-id"]
    assert problem["status"] == response.status_code
    return True


@pytest.mark.parametrize("name", BODIES)
async def test_hostile_json_is_refused(client: httpx2.AsyncClient, name: str) -> None:
    response = await client.post(
        "/agents", content=BODIES[name], headers={"content-type": "application/json"}
    )

    assert is_problem(response)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
        ("application/json; charset=utf-8", 201),
    ],
)
async def test_json_must_say_that_it_is_json(
    client: httpx2.AsyncClient, content_type: str, status: int
) -> None:
    response = await client.post(
        "/agents", content=b'{"name": "Ada"}', headers={"content-type": content_type}
    )

    assert response.status_code == status


async def test_answer_to_a_wrong_field_does_not_echo_the_input(client: httpx2.AsyncClient) -> None:
    body = {"name": {"key": SECRET}, "temperature": SECRET, "language": SECRET, "voice": [SECRET]}

    response = await client.post("/agents", json=body)

    assert response.status_code == 422
    assert SECRET not in response.text
    assert {tuple(error["loc"]) for error in response.json()["errors"]} == {
        ("body", "name"),
        ("body", "temperature"),
        ("body", "language"),
        ("body", "voice"),
    }


@pytest.mark.parametrize(
    "path",
    [
        "/agents/no-uuid",
        "/agents/%00",
        "/sessions/%ff%fe",
        "/sessions?q=%00",
        "/sessions?q=%20",
        "/sessions?limit=0",
        "/sessions?limit=101",
        "/sessions?limit=99999999999999999999",
        "/sessions?user_id=%00",
        "/sessions?agent_id=x",
        "/turns/no-uuid",
        "/no/such/path",
    ],
)
async def test_hostile_path_or_query_is_refused(client: httpx2.AsyncClient, path: str) -> None:
    response = await client.get(path)

    assert response.status_code in {307, 404, 422}
    if response.status_code != 307:
        assert is_problem(response)


async def test_wrong_method_names_the_right_ones(client: httpx2.AsyncClient) -> None:
    response = await client.delete("/agents")

    assert response.status_code == 405
    assert response.json()["code"] == "method-not-allowed"
    assert "POST" in response.headers["allow"]


BOUNDARY = b"--x\r\n"
PART = b'Content-Disposition: form-data; name="session_id"\r\n\r\n'
FORMS = {
    "nothing": b"",
    "no parts": b"--x--\r\n",
    "cut off": BOUNDARY + PART + b"abc",
    "no header": BOUNDARY + b"\r\n\r\nabc\r\n--x--\r\n",
    "header without end": BOUNDARY + b"Content-Disposition: " + b"x" * 100_000,
    "NUL in a name": BOUNDARY
    + b'Content-Disposition: form-data; name="a\x00"\r\n\r\nb\r\n--x--\r\n',
    "text as the file": BOUNDARY + PART + b"x\r\n" + BOUNDARY
    + b'Content-Disposition: form-data; name="audio"\r\n\r\nno file\r\n--x--\r\n',
    "invalid UTF-8": BOUNDARY + PART + b"\xff\xfe\r\n--x--\r\n",
    "two thousand parts": (BOUNDARY + PART + b"a\r\n") * 2000 + b"--x--\r\n",
    "another boundary": b"--y\r\n" + PART + b"a\r\n--y--\r\n",
    "file in the wrong field": BOUNDARY
    + b'Content-Disposition: form-data; name="session_id"; filename="a"\r\n\r\na\r\n--x--\r\n',
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
async def test_hostile_multipart_is_refused(client: httpx2.AsyncClient, name: str) -> None:
    response = await client.post(
        "/messages/voice",
        content=FORMS[name],
        headers={"content-type": "multipart/form-data; boundary=x"},
    )

    assert is_problem(response)


@pytest.mark.parametrize(
    "content_type",
    ["", "multipart/form-data", "multipart/form-data; boundary=", "application/json", "\xe9"],
)
async def test_upload_with_a_wrong_content_type_is_refused(
    client: httpx2.AsyncClient, content_type: str
) -> None:
    response = await client.post(
        "/messages/voice",
        content=FORMS["no parts"],
        headers=[(b"content-type", content_type.encode("latin-1"))],
    )

    assert is_problem(response)


async def test_upload_above_the_limit_is_refused_before_it_is_read(
    client: httpx2.AsyncClient,
) -> None:
    sent = 0

    async def endless() -> object:
        nonlocal sent
        yield BOUNDARY + b'Content-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
        for _ in range(60):
            sent += 1
            yield b"x" * 1024 * 1024

    response = await client.post(
        "/messages/voice",
        content=endless(),  # pyright: ignore[reportArgumentType]  # an async iterator of bytes
        headers={"content-type": "multipart/form-data; boundary=x"},
    )

    assert response.status_code == 413
    assert response.json()["code"] == "body-too-large"
    assert sent < 30


async def test_message_above_its_limit_calls_no_provider(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    response = await client.post(
        "/messages/text", json={"session_id": session_id, "content": "x" * 200_001}
    )

    assert response.status_code == 422
    assert chat_model.requests == []


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=True) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ("name", "system_prompt", "agent_id", "title", "metadata", "session_id", "content")


def posts(value: object) -> Iterator[tuple[str, bytes]]:
    for path in ("/agents", "/sessions", "/messages/text", f"/sessions/{uuid4()}/fork"):
        yield path, json.dumps(value, ensure_ascii=True).encode()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(value=json_values | st.dictionaries(st.sampled_from(FIELDS), json_values))
async def test_no_json_at_all_makes_a_server_error(
    client: httpx2.AsyncClient, value: object
) -> None:
    for path, body in posts(value):
        response = await client.post(
            path, content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code < 500, (path, body)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=st.binary(max_size=300))
async def test_no_bytes_at_all_make_a_server_error(client: httpx2.AsyncClient, body: bytes) -> None:
    for path, content_type in (
        ("/agents", "application/json"),
        ("/messages/voice", "multipart/form-data; boundary=x"),
    ):
        response = await client.post(path, content=body, headers={"content-type": content_type})
        assert 400 <= response.status_code < 500

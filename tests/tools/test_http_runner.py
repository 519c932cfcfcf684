"""Calls of HTTP tools: the request, the result, and whether it is known what was done."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import delete

from app.core.database import Database
from app.core.security import DEFAULT_WORKSPACE_ID
from app.models import StoredSecret, new_id
from app.services.tool_ports import PinnedTool, ToolCallRequest, ToolOutcome, ToolResult
from app.services.tools.definitions import pinned_tool
from app.services.tools.results import text_of
from app.state import State
from tests.support import planted_secrets
from tests.support.tool_server import Answer, ReceivedRequest, ToolServer
from tests.tools.conftest import definition, make_tool, store_secret

pytestmark = pytest.mark.anyio

SECRET = planted_secrets.TOOL_SECRET


class Calls:
    """Makes tools and runs calls of them, as a turn does."""

    def __init__(self, client: httpx2.AsyncClient, state: State, server: ToolServer) -> None:
        self.client, self.state, self.server = client, state, server
        self.signing_secret = ""
        self.call: ToolCallRequest | None = None

    async def tool(self, **changes: Any) -> PinnedTool:
        made = await make_tool(self.client, **definition(self.server, **changes))
        self.signing_secret = made["signing_secret"]
        fields = {name: made[name] for name in made if name not in {"id", "version"}}
        return pinned_tool(UUID(made["id"]), made["version"], fields)

    async def run(
        self, tool: PinnedTool, arguments: dict[str, Any] | None = None, **changes: Any
    ) -> ToolResult:
        fields: dict[str, Any] = {
            "id": new_id(),
            "workspace_id": DEFAULT_WORKSPACE_ID,
            "session_id": new_id(),
            "turn_id": new_id(),
            "agent_id": new_id(),
            "user_id": "user-1",
            "tool": tool,
            "arguments": json.dumps({"number": "7"} if arguments is None else arguments),
        }
        self.call = ToolCallRequest(**(fields | changes))
        return await self.state["tool_runner"].run(self.call)

    async def answered(self, answer: Answer, **changes: Any) -> ToolResult:
        """Run a call whose answer is `answer`."""
        self.server.answer = answer
        return await self.run(await self.tool(**changes))

    @property
    def received(self) -> ReceivedRequest:
        return self.server.requests[-1]

    @property
    def signature(self) -> str:
        """Return what the tool's secret makes of the request that was received."""
        headers, body = self.received.headers, self.received.body
        key = base64.b64decode(self.signing_secret.removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        return f"v1,{digest}"


@pytest.fixture
async def calls(client: httpx2.AsyncClient, state: State, server: ToolServer) -> Calls:
    return Calls(client, state, server)


async def test_get_has_its_arguments_in_path_and_query(calls: Calls) -> None:
    tool = await calls.tool(http={"query": {"fixed": "1", "verbose": "false"}})

    result = await calls.run(tool, {"number": "a/b?c#d e&ü", "verbose": True, "tags": ["x", "y&z"]})

    assert result.outcome is ToolOutcome.COMPLETED
    assert (result.text, result.stored_text) == ('{"ok":true}', '{"ok":true}')
    assert (result.was_sent, result.http_status, result.error_code) == (True, 200, None)
    target = urlsplit(calls.received.target)
    assert target.path == "/orders/a%2Fb%3Fc%23d%20e%26%C3%BC"
    assert parse_qs(target.query) == {"fixed": ["1"], "verbose": ["false"], "tags": ["x", "y&z"]}
    assert calls.received.body == b""


async def test_post_has_the_other_arguments_as_json_and_fixed_members_win(calls: Calls) -> None:
    body = {"channel": "api", "by": {"id": "{{user.id}}"}, "list": ["{{call.id}}"]}
    tool = await calls.tool(http={"method": "POST", "body": body})

    await calls.run(tool, {"number": "7", "by": {"id": "admin"}, "amount": 1.5})

    assert calls.call
    assert calls.received.target == "/orders/7"
    assert calls.received.headers["content-type"] == "application/json"
    assert calls.received.json == {
        "channel": "api",
        "by": {"id": "user-1"},
        "list": [str(calls.call.id)],
        "amount": 1.5,
    }


@pytest.mark.parametrize("value", ["", ".", "..", None, ["a"], {"a": 1}])
async def test_argument_cannot_change_the_path(calls: Calls, value: object) -> None:
    tool = await calls.tool()

    result = await calls.run(tool, {"number": value})

    assert (result.outcome, result.error_code) == (ToolOutcome.FAILED, "arguments-invalid")
    assert not result.was_sent
    assert calls.server.requests == []


@pytest.mark.parametrize(
    "value", ["../admin", "..%2fadmin", "a\r\nHost: x", "//evil", "\x00", "\\"]
)
async def test_hostile_argument_stays_one_segment(calls: Calls, value: str) -> None:
    tool = await calls.tool(http={"url": f"{calls.server.url}/a/{{number}}/b"})

    await calls.run(tool, {"number": value})

    assert calls.received.target == f"/a/{quote(value, safe='')}/b"
    assert calls.received.target.count("/") == 3
    assert calls.received.headers["host"] == calls.server.allowed


async def test_optional_argument_of_the_query_is_left_out(calls: Calls) -> None:
    tool = await calls.tool(http={"url": f"{calls.server.url}/x?n={{number}}&v={{verbose}}&c=1"})

    await calls.run(tool, {"number": "a&b"})
    assert calls.received.target == "/x?n=a%26b&c=1"
    await calls.run(tool, {"number": "1", "verbose": True})
    assert calls.received.target == "/x?n=1&v=true&c=1"


async def test_request_is_signed_and_has_the_call_as_its_key(calls: Calls) -> None:
    tool = await calls.tool(http={"method": "POST"})
    trace = f"00-{'1' * 32}-{'2' * 16}-01"

    await calls.run(tool, traceparent=trace)

    assert calls.call
    headers = calls.received.headers
    call_id = str(calls.call.id)
    assert headers["idempotency-key"] == headers["webhook-id"] == call_id
    assert headers["traceparent"] == trace
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60
    assert headers["webhook-signature"] == calls.signature


async def test_signing_key_is_read_once(calls: Calls, database: Database) -> None:
    tool = await calls.tool(http={"method": "POST"})
    assert (await calls.run(tool)).outcome is ToolOutcome.COMPLETED
    first = calls.received
    async with database.transaction() as db:
        await db.execute(delete(StoredSecret))

    assert (await calls.run(tool)).outcome is ToolOutcome.COMPLETED

    assert calls.received is not first
    assert calls.received.headers["webhook-signature"] == calls.signature


async def test_secrets_and_ids_are_in_headers_query_and_body(calls: Calls) -> None:
    await store_secret(calls.client, "127.0.0.1")
    tool = await calls.tool(
        http={
            "method": "POST",
            "headers": {
                "Authorization": "Bearer {{secrets.SHOP_KEY}}",
                "X-Ids": "{{session.id}} {{turn.id}} {{agent.id}}",
                "X-User": "{{ user.id }}",
            },
            "query": {"key": "{{secrets.SHOP_KEY}}"},
            "body": {"key": "{{secrets.SHOP_KEY}}"},
        }
    )

    await calls.run(tool, user_id="ü\r\nX-Admin: 1 100%")

    assert calls.call
    headers, call = calls.received.headers, calls.call
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["x-ids"] == f"{call.session_id} {call.turn_id} {call.agent_id}"
    assert headers["x-user"] == "%C3%BC%0D%0AX-Admin: 1 100%25"
    assert "x-admin" not in headers
    assert parse_qs(urlsplit(calls.received.target).query) == {"key": [SECRET]}
    assert calls.received.json["key"] == SECRET


async def test_secret_is_checked_again_at_each_call(calls: Calls) -> None:
    await store_secret(calls.client, "127.0.0.1")
    tool = await calls.tool(http={"headers": {"X-Key": "{{secrets.SHOP_KEY}}"}})
    assert (await calls.run(tool)).outcome is ToolOutcome.COMPLETED

    await store_secret(calls.client, "api.example.com")
    moved = await calls.run(tool)
    await calls.client.delete("/secrets/SHOP_KEY")
    deleted = await calls.run(tool)

    assert (moved.error_code, deleted.error_code) == ("secret-host-mismatch", "secret-not-found")
    assert not moved.was_sent
    assert len(calls.server.requests) == 1


FORMS = {
    "plain": SECRET,
    "URL": quote(f"x {SECRET}/é", safe=""),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "basic": base64.b64encode(f"user:{SECRET}".encode()).decode(),
    "base64 from 1": base64.b64encode(f"x{SECRET}yy".encode()).decode(),
    "base64 of a URL": base64.urlsafe_b64encode(f"xy{SECRET}".encode()).decode(),
    "JSON": json.dumps({"headers": {"Authorization": f"Bearer {SECRET}"}}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("status", [200, 401])
async def test_secret_that_is_echoed_is_replaced(calls: Calls, form: str, status: int) -> None:
    await store_secret(calls.client, "127.0.0.1")
    echo = f"you sent {FORMS[form]}, thanks".encode()

    result = await calls.answered(
        Answer(status, echo, "text/plain"),
        http={"headers": {"X-Key": "{{secrets.SHOP_KEY}}"}},
    )

    for text in (result.text, result.stored_text or "", result.error_detail or ""):
        planted_secrets.search(planted_secrets.Place.ANSWER, text)
        assert FORMS[form] not in text
    assert "[secret SHOP_KEY]" in result.text
    assert result.text.endswith(", thanks")


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b'{ "a" : [ 1.10, "x  y\\" z" ],\n "n": 12345678901234567890123 }', "application/json",
         '{"a":[1.10,"x  y\\" z"],"n":12345678901234567890123}'),
        (b"{ broken", "application/json", "{ broken"),
        (b"\xef\xbb\xbf[1]", "application/problem+json", "[1]"),
        (b"gr\xfc\xdfe", "text/plain; charset=ISO-8859-1", "gr\u00fc\u00dfe"),
        (b"a\x00b\xffc", "text/plain", "a\ufffdb\ufffdc"),
        (b'{"a": "\\ud800"}', "application/json", '{"a": "\\ud800"}'),
        (b"<p>One <b>two</b></p><script>alert(1)</script><p>three &amp; 4</p>", "text/html",
         "One two\n\nthree & 4"),
        (b"<a><b/></a>", "application/xml", "<a><b/></a>"),
        (b'{"x": 1}', None, '{"x":1}'),
        (b"plain", "application/octet-stream", "plain"),
        (b"", "application/pdf", ""),
        (b"+ADw-script+AD4-", "text/plain; charset=utf-7", "+ADw-script+AD4-"),
    ],
)  # fmt: skip
async def test_result_is_text(
    calls: Calls, body: bytes, content_type: str | None, text: str
) -> None:
    result = await calls.answered(Answer(200, body, content_type))

    assert (result.outcome, result.text) == (ToolOutcome.COMPLETED, text)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"%PDF-1.7 \x00", "application/pdf"), (b"\x00\x01", None),
     (b"\xff\xfe", "application/octet-stream"), (b"PK\x03\x04", "application/zip"),
     (b"x", "audio/mpeg"), (b"x", "<script>/x")],
)  # fmt: skip
async def test_binary_result_is_refused(
    calls: Calls, body: bytes, content_type: str | None
) -> None:
    result = await calls.answered(Answer(200, body, content_type))

    assert (result.outcome, result.error_code) == (ToolOutcome.FAILED, "tool-failed")
    assert "only text can be shown" in result.text
    assert "<script>" not in result.text


@pytest.mark.parametrize(
    ("pointer", "text"),
    [("/data/items/1/name", "two"), ("/data/items/0", '{"name":"one","n":1}'), ("/a~1b/~0", "x")],
)
async def test_part_of_the_result_is_selected(calls: Calls, pointer: str, text: str) -> None:
    body = {"data": {"items": [{"name": "one", "n": 1}, {"name": "two"}]}, "a/b": {"~": "x"}}

    result = await calls.answered(
        Answer(200, json.dumps(body, indent=1).encode()), http={"select": pointer}
    )

    assert result.text == text


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"data": []}', "application/json"),
        (b"no json", "text/plain"),
        (b"[" * 5000, "text/plain"),
    ],
)
async def test_part_that_is_not_there_fails(calls: Calls, body: bytes, content_type: str) -> None:
    result = await calls.answered(Answer(200, body, content_type), http={"select": "/data/0"})

    assert (result.outcome, result.error_code) == (ToolOutcome.FAILED, "tool-failed")


async def test_long_result_is_cut_in_the_middle(calls: Calls) -> None:
    text = "".join(f"{number:06d}\u00e4" for number in range(60_000))

    result = await calls.answered(Answer(200, text.encode(), "text/plain"), max_result_bytes=1000)

    assert 950 < len(result.text.encode()) <= 1000
    head, _, tail = result.text.partition("\n[... ")
    left_out, _, tail = tail.partition(" characters left out ...]\n")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) + int(left_out.replace(",", "")) == len(text)
    assert 1.3 < len(head.encode()) / len(tail.encode()) < 1.7
    assert result.stored_text
    assert 250_000 < len(result.stored_text.encode()) <= 256 * 1024


async def test_result_of_more_than_a_megabyte_is_not_read(calls: Calls) -> None:
    tool = await calls.tool(http={"url": f"{calls.server.url}/fail/endless"})
    result = await calls.run(tool)

    assert (result.outcome, result.error_code) == (ToolOutcome.FAILED, "tool-result-too-large")
    assert (result.was_sent, result.http_status) == (True, 200)


@pytest.mark.parametrize("status", [400, 404, 500, 301])
async def test_status_outside_of_2xx_fails_and_its_body_is_for_the_model_alone(
    calls: Calls, status: int
) -> None:
    result = await calls.answered(Answer(status, b"out of paper " * 500, "text/plain"))

    assert (result.outcome, result.error_code) == (ToolOutcome.FAILED, "tool-failed")
    assert result.http_status == status
    assert str(status) in (result.error_detail or "")
    assert "paper" not in (result.error_detail or "")
    assert "paper" in result.text
    assert len(result.text) < 2200


FAULT_CODES = {
    "close": "tool-unreachable",
    "reset": "tool-unreachable",
    "half": "tool-unreachable",
    "chunk": "tool-unreachable",
    "no-http": "tool-unreachable",
    "silent": "tool-timeout",
    "slow": "tool-timeout",
}


@pytest.mark.parametrize("fault", FAULT_CODES)
@pytest.mark.parametrize("effect", ["read", "idempotent", "once"])
async def test_lost_answer_is_unknown_for_once_and_failed_else(
    calls: Calls, fault: str, effect: str
) -> None:
    tool = await calls.tool(
        http={"method": "POST", "url": f"{calls.server.url}/fail/{fault}"},
        effect=effect,
        timeout_seconds=1,
    )

    result = await calls.run(tool)

    expected = ToolOutcome.UNKNOWN if effect == "once" else ToolOutcome.FAILED
    assert (result.outcome, result.error_code) == (expected, FAULT_CODES[fault])
    assert result.was_sent
    assert len(calls.server.requests) == 1
    assert ("not known" in result.text) == (effect == "once")


@pytest.mark.parametrize("effect", ["read", "once"])
async def test_call_that_was_not_sent_failed(calls: Calls, effect: str) -> None:
    tool = await calls.tool(effect=effect, http={"method": "POST"})
    calls.server.stop()

    result = await calls.run(tool)

    assert (result.outcome, result.error_code) == (ToolOutcome.FAILED, "tool-unreachable")
    assert not result.was_sent
    assert "127.0.0.1" not in result.text


async def test_compressed_and_redirected_answers_fail(calls: Calls) -> None:
    codes: list[str | None] = []
    for fault in ("compressed", "redirect"):
        url = f"{calls.server.url}/fail/{fault}"
        tool = await calls.tool(name=fault, http={"method": "POST", "url": url})
        result = await calls.run(tool)
        assert (result.outcome, result.was_sent) == (ToolOutcome.FAILED, True)
        codes.append(result.error_code)
    assert codes == ["tool-failed", "tool-failed"]
    assert len(calls.server.requests) == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"number": "1"}', None),
        ('{"number": 1}', '/number: type: "string"'),
        ("{}", 'required: ["number"]'),
        ("", 'required: ["number"]'),
        ("[]", "no JSON object"),
        ('{"number": ', "no JSON object"),
        ("NaN", "no JSON object"),
        ("[" * 10_000, "no JSON object"),
    ],
)
async def test_wrong_arguments_are_told_without_their_values(
    calls: Calls, arguments: str, problem: str | None
) -> None:
    tool = await calls.tool()

    told = calls.state["tool_runner"].problem_of(tool, arguments)

    assert told is None if problem is None else problem in (told or "")


async def test_long_answer_is_not_read_on_the_event_loop(calls: Calls) -> None:
    page = b"<" * 1_000_000
    tool = await calls.tool()
    calls.server.answer = Answer(body=page, content_type="text/html")
    began_at = time.thread_time()
    text_of(page, "text/html")
    reading_seconds = time.thread_time() - began_at

    began_at = time.thread_time()
    result = await calls.run(tool)

    assert result.outcome is ToolOutcome.COMPLETED
    assert time.thread_time() - began_at < reading_seconds / 2

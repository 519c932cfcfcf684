"""Traces of turns, as a collector on loopback receives them over OTLP/HTTP."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.core.config import Settings
from app.core.database import Database
from app.core.errors import StartRefused
from app.telemetry.tracing import TurnTracer
from tests.observability.world import world_of
from tests.support import planted_secrets
from tests.support.provider import Fault, Provider
from tests.support.tool_server import tool_server

pytestmark = pytest.mark.anyio

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"{planted_secrets.MARK}collector-key"


@dataclass
class Collector:
    """Takes `POST /v1/traces`."""

    url: str = ""
    spans: list[Any] = field(default_factory=list[Any])
    bodies: list[bytes] = field(default_factory=list[bytes])
    headers: list[str | None] = field(default_factory=list[str | None])

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(request.headers.get("x-collector-key"))
        export = ExportTraceServiceRequest.FromString(body)
        for resource in export.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(body=b"", content_type="application/x-protobuf")

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@asynccontextmanager
async def collecting() -> AsyncGenerator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield collector
    finally:
        await runner.cleanup()


def traced(settings: Settings, collector: Collector) -> Settings:
    return type(settings).model_validate(
        settings.model_dump()
        | {
            "otel_exporter_otlp_endpoint": collector.url,
            "otel_exporter_otlp_headers": f"x-collector-key={HEADER}",
        }
    )


def attributes(span: Any) -> dict[str, Any]:  # noqa: ANN401  # protobuf
    return {each.key: each.value for each in span.attributes}


async def test_a_turn_is_a_trace_of_its_stages_and_continues_the_callers(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    async with collecting() as collector:
        settings = traced(sqlite_settings, collector)
        async with world_of(settings, sqlite_database, provider) as world:
            provider.fail(Fault.STATUS_503)
            answer = await world.client.post(
                "/messages/text",
                json={"session_id": world.session_id, "content": planted_secrets.SAID},
                headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"},
            )
            (line,) = world.lines.named("turn ended")

    (root,) = collector.named("invoke_agent")
    children = [span for span in collector.spans if span is not root]
    assert root.trace_id.hex() == TRACE_ID == line["trace_id"]
    assert root.parent_span_id.hex() == SPAN_ID
    assert {span.trace_id.hex() for span in children} == {TRACE_ID}
    assert {span.parent_span_id for span in children} == {root.span_id}
    assert sorted(span.name for span in children) == [
        "accept", "chat gpt-6-luna", "chat gpt-6-luna", "prompt", "settle",
    ]  # fmt: skip
    failed, answered = collector.named("chat gpt-6-luna")
    assert attributes(failed)["error.type"].string_value == "provider-unavailable"
    found = attributes(answered)
    assert found["gen_ai.operation.name"].string_value == "chat"
    assert found["gen_ai.request.model"].string_value == "gpt-6-luna"
    assert found["gen_ai.usage.input_tokens"].int_value > 0
    assert found["gen_ai.usage.output_tokens"].int_value > 0
    assert found["server.address"].string_value == f"127.0.0.1:{provider.port}"
    assert [event.name for event in answered.events] == ["first_token"]
    for span in children:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    assert attributes(root)["agent_platform.turn.id"].string_value == answer.json()["turn_id"]
    assert set(collector.headers) == {HEADER}
    for body in collector.bodies:
        planted_secrets.search(planted_secrets.Place.LOG, body, "a trace")


async def test_tool_calls_are_spans_of_their_turn_without_content(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    provider.chat.calls = [("look_up", '{"n": 1}'), ("nothing", "{}")]
    async with collecting() as collector, tool_server() as tools:
        settings = traced(sqlite_settings, collector).model_copy(
            update={"tools_allowed_addresses": tools.allowed}
        )
        tools.answer.body = b'{"found": "a_secret_of_the_shop"}'
        async with world_of(settings, sqlite_database, provider) as world:
            tool = {
                "name": "look_up",
                "description": "Looks up.",
                "kind": "http",
                "parameters": {"type": "object"},
                "http": {"method": "GET", "url": f"{tools.url}/x"},
            }
            made = (await world.client.post("/tools", json=tool)).json()
            agent = await world.client.post(
                "/agents", json={"name": "Ada", "tools": [{"tool_id": made["id"]}]}
            )
            session = await world.client.post("/sessions", json={"agent_id": agent.json()["id"]})
            message = {"session_id": session.json()["id"], "content": "Go"}
            reply = (await world.client.post("/messages/text", json=message)).json()
            turn = (await world.client.get(f"/turns/{reply['turn_id']}")).json()

    (root,) = collector.named("invoke_agent")
    (span,) = collector.named("execute_tool look_up")
    assert span.parent_span_id == root.span_id
    assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert span.end_time_unix_nano <= root.end_time_unix_nano
    found = attributes(span)
    assert found["gen_ai.operation.name"].string_value == "execute_tool"
    assert found["gen_ai.tool.call.id"].string_value == turn["tool_calls"][0]["id"]
    assert found["agent_platform.tool_call.status"].string_value == "completed"
    assert found["agent_platform.tool_call.arguments_bytes"].int_value == len('{"n": 1}')
    assert found["agent_platform.tool_call.result_bytes"].int_value > 0
    assert not any(b"a_secret_of_the_shop" in body for body in collector.bodies)


async def test_a_turn_without_a_callers_trace_has_one_that_its_lines_name(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    async with collecting() as collector:
        settings = traced(sqlite_settings, collector)
        async with world_of(settings, sqlite_database, provider) as world:
            await world.say()
            await world.say()
            first, second = world.lines.named("turn ended")

    roots = collector.named("invoke_agent")
    assert [root.trace_id.hex() for root in roots] == [first["trace_id"], second["trace_id"]]
    assert first["trace_id"] != second["trace_id"]


async def test_a_caller_that_does_not_sample_gets_no_trace(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    async with collecting() as collector:
        settings = traced(sqlite_settings, collector)
        async with world_of(settings, sqlite_database, provider) as world:
            await world.client.post(
                "/messages/text",
                json={"session_id": world.session_id, "content": "Hi"},
                headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"},
            )

    assert collector.spans == []


async def test_a_collector_that_is_away_costs_no_turn(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    settings = traced(sqlite_settings, Collector("http://127.0.0.1:9"))
    async with world_of(settings, sqlite_database, provider) as world:
        answer = await world.say()

    assert answer.status_code == 200


def test_without_its_packages_the_server_says_what_to_install(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(StartRefused, match=r"agent-platform\[otel\]"):
        TurnTracer(traced(sqlite_settings, Collector("http://127.0.0.1:9")))

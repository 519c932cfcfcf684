"""`GET /metrics`: who may read it, what it counts, and how it tells what fills up."""

import re
from pathlib import Path

import anyio
import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import event

from app.core.config import Settings
from app.core.database import Database
from app.services.turns import engine
from app.telemetry.metrics import Metrics
from tests.conftest import client_of
from tests.identity.world import ADMIN, bearer
from tests.observability.world import World, world_of
from tests.support import planted_secrets
from tests.support.fake_providers import FakeChatModel
from tests.support.provider import Fault, Provider
from tests.turns.test_engine import Gate

pytestmark = pytest.mark.anyio

TOKEN = f"{planted_secrets.MARK}metrics-token-0123456789"
ROOT = Path(__file__).parents[2]


async def figures(client: httpx2.AsyncClient, **headers: str) -> dict[str, float]:
    """Return each sample by its name and labels, as Prometheus reads it."""
    answer = await client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}".removeprefix("agent_platform_")] = sample.value
    return samples


async def test_turns_requests_and_provider_calls_are_counted(world: World) -> None:
    world.provider.fail(Fault.STATUS_503)
    await world.say()
    world.provider.fail(Fault.STATUS_401)
    await world.say()
    await world.client.get("/agents/no-uuid")

    found = await figures(world.client)

    assert found["turns_total{code=,modality=text,status=completed}"] == 1
    assert found["turns_total{code=provider-unauthorized,modality=text,status=failed}"] == 1
    assert found["turn_seconds_count{modality=text}"] == 2
    assert found["provider_attempts_total{capability=chat,outcome=ok}"] == 1
    assert found["provider_attempts_total{capability=chat,outcome=provider-unavailable}"] == 1
    assert found["provider_attempts_total{capability=chat,outcome=provider-unauthorized}"] == 1
    assert found["provider_retries_total{capability=chat}"] == 1
    assert found["provider_first_item_seconds_count{capability=chat}"] == 1
    assert found["provider_call_seconds_count{capability=chat}"] == 1
    assert found["provider_breaker_open{capability=chat}"] == 0
    assert found["http_requests_total{method=POST,route=/messages/text,status=200}"] == 1
    assert found["http_requests_total{method=POST,route=/messages/text,status=502}"] == 1
    assert found["http_requests_total{method=GET,route=/agents/{agent_id},status=422}"] == 1
    assert found["refused_requests_total{code=request-invalid}"] == 1
    assert found["tokens_total{kind=completion}"] > 0
    assert found["cost_usd_total{}"] > 0
    assert found["live_turns{status=in_progress}"] == 0
    assert found["register_size{register=turns}"] == 0
    assert found["register_limit{register=turns}"] == engine.LIVE_TURNS_LIMIT
    assert found["database_connections{pool=requests,state=limit}"] > 0
    assert found["database_queue{}"] == 0
    assert found["worker_process{process=uploads,state=running}"] == 0
    assert found["worker_jobs{process=uploads,state=waiting}"] == 0
    assert found["worker_process_restarts{process=uploads}"] == 0
    assert found["draining{}"] == 0
    assert [name for name in found if name.startswith("build_info")]
    assert found["process_open_fds{}"] > 0


async def test_a_breaker_that_is_open_is_seen(world: World) -> None:
    world.provider.fail(Fault.STATUS_500, times=None)
    for _ in range(3):
        await world.say()

    found = await figures(world.client)

    assert found["provider_breaker_open{capability=chat}"] == 1
    assert found["provider_breaker_refusals_total{capability=chat}"] >= 1


async def test_a_turn_that_runs_is_seen_and_so_is_its_stream(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    found: dict[str, float] = {}
    model = FakeChatModel()
    gate = model.while_thinking = Gate()
    async with (
        world_of(sqlite_settings, sqlite_database, provider, chat_model=model) as world,
        anyio.create_task_group() as group,
    ):
        body = {"session_id": world.session_id, "content": "Hi"}
        events = {"accept": "text/event-stream"}
        group.start_soon(lambda: world.client.post("/messages/text", json=body, headers=events))
        await gate.arrived.wait()
        group.start_soon(world.say)
        while (found := await figures(world.client))["live_turns{status=queued}"] == 0:
            await anyio.lowlevel.checkpoint()
        gate.opened.set()

    assert found["live_turns{status=in_progress}"] == 1
    assert found["register_size{register=turns}"] == 2
    assert found["event_streams{}"] == 1


async def test_a_key_needs_the_scope_and_a_token_reads_nothing_else(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    settings = sqlite_settings.model_copy(update={"metrics_token": SecretStr(TOKEN)})
    outside = {"peer": "192.0.2.1", "base_url": "http://api.example"}
    async with (
        world_of(settings, sqlite_database, provider) as world,
        client_of(settings, world.state, **outside) as stranger,
    ):
        scopes = {"good": ["metrics:read"], "other": ["agents:read", "keys:read"]}
        keys: dict[str, str] = {}
        for name, given in scopes.items():
            body = {"name": name, "scopes": given}
            keys[name] = (await stranger.post("/keys", json=body, headers=ADMIN)).json()["key"]
        statuses = {
            name: (await stranger.get("/metrics", headers=bearer(token))).status_code
            for name, token in {**keys, "token": TOKEN, "wrong": "x" * 20}.items()
        }
        elsewhere = await stranger.get("/agents", headers=bearer(TOKEN))
        anonymous = await stranger.get("/metrics")

    assert statuses == {"good": 200, "other": 403, "token": 200, "wrong": 401}
    assert (elsewhere.status_code, anonymous.status_code) == (401, 401)


def test_every_metric_is_documented() -> None:
    document = (ROOT / "docs/observability.md").read_text()
    documented = set(re.findall(r"^\| `(agent_platform_\w+)`", document, re.MULTILINE))
    metrics = Metrics()
    counted = {f"{counter.name}_total" for counter in metrics.counters}
    measured = {histogram.name for histogram in metrics.histograms}

    assert counted | measured <= documented


async def test_what_the_gauges_are_called_is_documented(world: World) -> None:
    document = (ROOT / "docs/observability.md").read_text()
    answer = await world.client.get("/metrics")

    for name in re.findall(r"^# TYPE (agent_platform_\w+)", answer.text, re.MULTILINE):
        assert f"`{name}`" in document


async def test_readiness_tells_that_the_server_is_full(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await world.client.get("/health/ready")
    monkeypatch.setattr(engine, "LIVE_TURNS_LIMIT", 0)
    full = await world.client.get("/health/ready")
    refused = await world.say()

    assert before.status_code == 200
    assert (full.status_code, full.json()["code"]) == (503, "server-busy")
    assert refused.json()["code"] == "server-busy"


async def test_readiness_asks_the_database_once_a_second_however_many_ask(
    world: World, sqlite_database: Database
) -> None:
    asked: list[str] = []

    def note(*arguments: object) -> None:
        asked.append(str(arguments[2]))

    event.listen(sqlite_database.engine.sync_engine, "before_cursor_execute", note)
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await world.client.get("/health/ready")).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(ask)
    event.remove(sqlite_database.engine.sync_engine, "before_cursor_execute", note)

    assert answers == [200] * 50
    assert len([sql for sql in asked if "alembic_version" in sql]) == 1

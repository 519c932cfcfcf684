"""Every request has an id, and one line in the log that holds no secret and no words."""

import contextvars
import logging
import re

import pytest

from app.core.config import AppEnv, Settings
from app.core.database import Database
from app.core.logging import LogFormat, TextFormatter, log_fields
from tests.conftest import client_of
from tests.identity.world import ADMIN
from tests.observability.records import logged, wait_for_lines
from tests.observability.world import World, world_of
from tests.support import planted_secrets
from tests.support.provider import Provider

pytestmark = pytest.mark.anyio

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("header", ["Request-Id", "X-Request-Id"])
async def test_a_callers_request_id_is_kept_returned_and_logged_with_its_turn(
    world: World, header: str
) -> None:
    answer = await world.client.post(
        "/messages/text",
        json={"session_id": world.session_id, "content": "Hi"},
        headers={header: "req_42", "traceparent": TRACEPARENT},
    )

    (ended,) = world.lines.named("turn ended")
    (request,) = world.lines.named("request")
    assert answer.headers["request-id"] == "req_42"
    assert answer.headers["traceparent"] == TRACEPARENT
    assert ended["request_id"] == request["request_id"] == "req_42"
    assert ended["trace_id"] == request["trace_id"] == TRACEPARENT[3:35]
    assert ended["turn_id"] == answer.json()["turn_id"]
    assert request["method"] == "POST"
    assert request["path"] == "/messages/text"
    assert request["status"] == 200
    assert request["caller"] == "admin"
    assert request["ms"] > 0


@pytest.mark.parametrize("value", ["", "two words", "x" * 129, "naïve", "a\tb", "\x7f"], ids=repr)
async def test_a_request_id_that_is_not_plain_is_replaced(world: World, value: str) -> None:
    answer = await world.client.get("/agents", headers=[(b"Request-Id", value.encode("latin-1"))])

    assert re.fullmatch("[0-9a-f]{16}", answer.headers["request-id"])


@pytest.mark.parametrize(
    "value",
    [
        "", "x", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", TRACEPARENT.upper(),
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01", "ff" + TRACEPARENT[2:],
        TRACEPARENT + "-extra", "00" * 200,
    ],
)  # fmt: skip
async def test_a_traceparent_that_is_not_valid_is_dropped(world: World, value: str) -> None:
    answer = await world.client.get("/agents", headers={"traceparent": value})

    assert "traceparent" not in answer.headers
    assert "trace_id" not in world.lines.named("request")[0]


async def test_a_turns_end_is_one_line_with_ids_timings_tokens_and_cost(world: World) -> None:
    await world.say()

    (line,) = world.lines.named("turn ended")
    assert line["level"] == "info"
    assert line["status"] == "completed"
    assert line["session_id"] == world.session_id
    assert line["modality"] == "text"
    assert line["model"] == "gpt-6-luna"
    assert line["finish_reason"] == "stop"
    assert line["attempt"] == 1
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] > 0
    assert line["cost_usd"] > 0
    assert 0 < line["first_token_ms"] <= line["total_ms"]
    assert line["accept_ms"] > 0
    assert line["settle_ms"] >= 0
    planted_secrets.search(planted_secrets.Place.LOG, "\n".join(world.lines.text), "a turn")


async def test_query_strings_are_never_logged(world: World) -> None:
    await world.client.get(f"/turns/{world.session_id}/audio?token=st_{planted_secrets.SAID}")

    assert "token=" not in "\n".join(world.lines.text)
    planted_secrets.search(
        planted_secrets.Place.LOG, "\n".join(world.lines.text), "a token in a URL"
    )


async def test_paths_are_logged_without_what_could_forge_a_line(world: World) -> None:
    await world.client.get("/agents/%0a%1b[31m" + "x" * 500)

    (line,) = world.lines.named("request refused")
    assert len(line["path"]) == 200
    assert line["path"].isprintable()
    assert line["code"] in {"request-invalid", "not-found"}


async def test_without_an_access_log_only_what_went_wrong_is_logged(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> None:
    quiet = sqlite_settings.model_copy(update={"access_log": False})
    async with world_of(quiet, sqlite_database, provider) as world:
        await world.client.get("/agents")
        await world.client.get("/agents/no-uuid")
        lines = world.lines.all

    assert [line["message"] for line in lines] == ["request refused"]
    assert lines[0]["code"] == "request-invalid"


async def test_each_refused_credential_is_one_line_with_its_reason(world: World) -> None:
    outside = {"peer": "192.0.2.1", "base_url": "http://api.example"}
    async with client_of(world.settings, world.state, **outside) as stranger:
        wait_for_lines(stranger)
        made = await stranger.post(
            "/keys", json={"name": "k", "scopes": ["agents:read"]}, headers=ADMIN
        )
        key: str = made.json()["key"]
        for token in ("", "nonsense", key[:-1] + "~", f"{planted_secrets.SAID}.{'b' * 9}.c"):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            await stranger.get("/agents", headers=headers)

    refused = world.lines.named("request refused")
    assert [line["reason"] for line in refused] == [
        "no key, and not a local request",
        "no known kind of key or token",
        "a mistyped key or token",
        "a JWT, and SUPABASE_URL is not set",
    ]
    assert key not in "\n".join(world.lines.text)
    planted_secrets.search(
        planted_secrets.Place.LOG, "\n".join(world.lines.text), "refused credentials"
    )


def test_text_lines_quote_what_is_not_plain() -> None:
    record = logging.LogRecord("app.turns", logging.INFO, "", 0, "turn ended", (), None)
    for name, value in log_fields(status="failed", detail='a "b"\nc', code=None, ms=1.5).items():
        setattr(record, name, value)

    line = TextFormatter().format(record)

    assert line.endswith(r'app.turns: turn ended status=failed detail="a \"b\"\nc" ms=1.5')
    assert "\n" not in line


def test_production_logs_json_and_development_text(sqlite_settings: Settings) -> None:
    in_production = sqlite_settings.model_copy(update={"app_env": AppEnv.PRODUCTION})

    assert sqlite_settings.chosen_log_format is LogFormat.TEXT
    assert in_production.chosen_log_format is LogFormat.JSON


def test_a_line_of_code_outside_of_any_request_has_no_ids() -> None:
    with logged() as lines:
        contextvars.Context().run(logging.getLogger("app.test").warning, "alone")

    assert {"request_id", "turn_id", "trace_id"}.isdisjoint(lines.all[0])

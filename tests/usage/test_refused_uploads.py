"""Uploads that become no turn: who may not speak is told before, and what was heard counts."""

from uuid import uuid4

import httpx2
import numpy as np
import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.core.database import Database
from app.core.security import DEFAULT_WORKSPACE_ID
from app.models import Budget, utc_now
from app.services.ports import AudioFormat
from tests.conftest import StartServer, client_of
from tests.support.fake_providers import FakeTranscriber
from tests.voice.sounds import RATE_HZ, encoded

pytestmark = pytest.mark.anyio

UNREADABLE = b"no sound at all"
"""Refused as such, once it is looked at."""


def silence(seconds: int) -> bytes:
    return encoded(np.zeros(seconds * RATE_HZ, np.int16), AudioFormat.FLAC)


async def speak(
    client: httpx2.AsyncClient, session_id: str, data: bytes, **headers: str
) -> httpx2.Response:
    return await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("x.wav", data)},
        headers=headers,
    )


async def upload_seconds(database: Database) -> float:
    async with database.reading() as db:
        rows = (await db.scalars(select(Budget))).all()
    return sum(row.upload_ms for row in rows) / 1000


async def test_nothing_is_listened_to_for_a_session_that_does_not_exist(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    assert (await speak(client, session_id, UNREADABLE)).json()["code"] == "audio-unreadable"

    refused = await speak(client, str(uuid4()), UNREADABLE)

    assert refused.status_code == 404
    assert refused.json()["code"] == "session-not-found"


async def test_nothing_is_listened_to_for_an_archived_agent(
    client: httpx2.AsyncClient, agent_id: str, session_id: str
) -> None:
    await client.delete(f"/agents/{agent_id}")

    assert (await speak(client, session_id, UNREADABLE)).json()["code"] == "agent-archived"


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"upload_minutes_per_day": 1}, "uploads-exhausted"),
        ({"tokens_per_day": 1}, "budget-exhausted"),
    ],
)
async def test_nothing_is_listened_to_once_the_day_is_used_up(
    second_server: StartServer,
    settings: Settings,
    session_id: str,
    database: Database,
    limit: dict[str, int],
    code: str,
) -> None:
    changes = {f"limit_{name}": value for name, value in limit.items()}
    async with second_server(**changes) as state, client_of(settings, state) as client:
        await use_up(database)
        refused = await speak(client, session_id, UNREADABLE)

        assert refused.status_code == 429
        assert refused.json()["code"] == code
        assert refused.headers["retry-after"]


async def use_up(database: Database) -> None:
    """Let the admin's account have used everything today."""
    async with database.transaction() as db:
        db.add(
            Budget(
                workspace_id=DEFAULT_WORKSPACE_ID,
                bucket="",
                day=utc_now().date(),
                live_turns=0,
                upload_ms=60_000,
                tokens=1,
                nanos=0,
            )
        )


async def test_seconds_that_were_listened_to_in_vain_count(
    client: httpx2.AsyncClient, session_id: str, database: Database, transcriber: FakeTranscriber
) -> None:
    for seconds in (20, 40):
        refused = await speak(client, session_id, silence(seconds))
        assert refused.json()["code"] == "no-speech"

    assert await upload_seconds(database) == pytest.approx(60, abs=1)
    assert not transcriber.recordings


async def test_refused_minutes_use_up_the_day(
    second_server: StartServer, settings: Settings, session_id: str, speech: bytes
) -> None:
    async with (
        second_server(limit_upload_minutes_per_day=1) as state,
        client_of(settings, state) as client,
    ):
        codes = [(await speak(client, session_id, silence(31))).json()["code"] for _ in range(3)]
        last = await speak(client, session_id, speech)

    assert codes == ["no-speech", "no-speech", "uploads-exhausted"]
    assert last.json()["code"] == "uploads-exhausted"


async def test_a_recording_that_is_refused_at_once_costs_nothing(
    client: httpx2.AsyncClient, session_id: str, database: Database
) -> None:
    for data in (b"", UNREADABLE, b"RIFF\0\0\0\0WAVE"):
        assert (await speak(client, session_id, data)).status_code == 422

    assert await upload_seconds(database) < 0.5


async def test_a_recording_that_was_heard_and_then_refused_counts(
    second_server: StartServer,
    settings: Settings,
    session_id: str,
    speech: bytes,
    database: Database,
) -> None:
    async with second_server(limit_tokens_per_day=5) as state, client_of(settings, state) as client:
        refused = await speak(client, session_id, speech)

    assert refused.json()["code"] == "budget-exhausted"
    assert await upload_seconds(database) == pytest.approx(3.45, abs=0.05)


async def test_the_same_request_again_is_answered_although_the_day_is_used_up(
    second_server: StartServer,
    settings: Settings,
    session_id: str,
    speech: bytes,
    database: Database,
) -> None:
    async with (
        second_server(limit_tokens_per_day=100_000) as state,
        client_of(settings, state) as client,
    ):
        key = {"Idempotency-Key": "one-key"}
        first = await speak(client, session_id, speech, **key)
        async with database.transaction() as db:
            for row in (await db.scalars(select(Budget))).all():
                row.tokens = 100_000
        again = await speak(client, session_id, speech, **key)
        other = await speak(client, session_id, UNREADABLE)

    assert first.status_code == again.status_code == 200
    assert again.headers["x-turn-id"] == first.headers["x-turn-id"]
    assert again.content == first.content
    assert other.json()["code"] == "budget-exhausted"

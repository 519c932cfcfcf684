"""Bad audio at the endpoint: a 4xx that says why, and nobody is asked or remembers."""

import httpx2
import pytest
from sqlalchemy import func, select

from app.core.database import Database
from app.models import StoredRecording, Turn
from tests.support.fake_providers import FakeTranscriber
from tests.voice.bad_audio import CLASSES, too_large

pytestmark = pytest.mark.anyio


async def test_each_class_of_bad_audio_is_refused_with_its_code(
    client: httpx2.AsyncClient,
    database: Database,
    transcriber: FakeTranscriber,
    session_id: str,
) -> None:
    answers: dict[str, tuple[str, int]] = {}
    for make in CLASSES:
        data = next(iter(make().values()))
        response = await client.post(
            "/messages/voice",
            data={"session_id": session_id},
            files={"audio": ("speech.wav", data, "audio/wav")},
        )
        answers[make.__name__] = response.json()["code"], response.status_code

    assert {name: code for name, (code, _) in answers.items() if name != too_large.__name__} == {
        make.__name__: code for make, code in CLASSES.items() if make is not too_large
    }
    assert answers[too_large.__name__][1] == 413
    assert {status for _, status in answers.values()} == {413, 422}
    assert not transcriber.recordings
    async with database.reading() as db:
        assert await db.scalar(select(func.count()).select_from(Turn)) == 0
        assert await db.scalar(select(func.count()).select_from(StoredRecording)) == 0

"""An agent's voice is checked where the speech provider's voices are known."""

from typing import Any

import httpx2
import pytest

from app.core.config import EmbeddedModels
from app.services.local_service.manifest import SETS
from app.services.openai_service import make_speaker
from app.services.ports import STANDARD_VOICES
from app.services.provider_http.client import ProviderClient
from tests.support.fake_providers import FakeSpeaker

pytestmark = pytest.mark.anyio


@pytest.fixture
def speaker() -> FakeSpeaker:
    speaker = FakeSpeaker()
    speaker.voices = STANDARD_VOICES | {"cedar"}
    return speaker


@pytest.mark.parametrize("voice", ["bob", "Alloy", "cedar ", "alloy\u200b"])
async def test_voice_that_nobody_has_is_refused_and_the_voices_are_named(
    client: httpx2.AsyncClient, agent_id: str, voice: str
) -> None:
    path = f"/agents/{agent_id}"
    refused = [
        await client.post("/agents", json={"name": "Ada", "voice": voice}),
        await client.put(path, json={"voice": voice}),
        await client.patch(path, json={"name": "Eve", "voice": voice}),
    ]

    for response in refused:
        problem = response.json()
        assert response.status_code == 422, response.text
        assert problem["code"] == "request-invalid"
        assert "alloy, cedar, echo" in problem["detail"]
        assert voice.strip() not in problem["detail"] or voice == "cedar "
        assert problem["errors"][0]["loc"] == ["body", "voice"]
    assert (await client.get(path)).json()["version"] == 1
    assert len((await client.get("/agents")).json()) == 1


@pytest.mark.parametrize("voice", ["alloy", "cedar", None])
async def test_voice_of_the_provider_is_accepted(
    client: httpx2.AsyncClient, agent_id: str, voice: str | None
) -> None:
    made = await client.post("/agents", json={"name": "Ada", "voice": voice})
    changed = await client.patch(f"/agents/{agent_id}", json={"voice": voice})

    assert made.status_code == 201
    assert made.json()["voice"] == changed.json()["voice"] == voice


async def test_voice_of_an_earlier_provider_is_kept_while_other_fields_change(
    client: httpx2.AsyncClient, agent_id: str, speaker: FakeSpeaker
) -> None:
    await client.patch(f"/agents/{agent_id}", json={"voice": "cedar"})
    speaker.voices = STANDARD_VOICES
    agent: dict[str, Any] = (await client.get(f"/agents/{agent_id}")).json()

    renamed = await client.put(f"/agents/{agent_id}", json=agent | {"name": "Eve"})
    restored = await client.post(f"/agents/{agent_id}/versions/2/restore")

    assert (renamed.status_code, renamed.json()["voice"]) == (200, "cedar")
    assert restored.json()["voice"] == "cedar"
    assert (await client.patch(f"/agents/{agent_id}", json={"voice": "sage"})).status_code == 422


async def test_any_voice_is_accepted_where_nobody_knows_them(
    client: httpx2.AsyncClient, speaker: FakeSpeaker
) -> None:
    speaker.voices = None

    made = await client.post("/agents", json={"name": "Ada", "voice": "bob"})

    assert (made.status_code, made.json()["voice"]) == (201, "bob")


@pytest.mark.parametrize("model", ["gpt-realtime-2.1-mini", "gpt-4o-mini-tts"])
@pytest.mark.parametrize(
    ("base_url", "is_known"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://127.0.0.1:8880/v1", False),
        ("https://api.openai.com.example.org/v1", False),
    ],
)
async def test_openais_voices_are_known_and_those_of_compatible_servers_are_not(
    model: str, base_url: str, *, is_known: bool
) -> None:
    async with ProviderClient(base_url, "key") as client:
        voices = make_speaker(client, model).voices

    assert (voices is not None) is is_known
    if voices:
        assert voices >= STANDARD_VOICES | {"marin", "cedar", "verse"}
        assert "bob" not in voices


def test_embedded_voices_are_those_of_the_models() -> None:
    default, small = SETS[EmbeddedModels.DEFAULT], SETS[EmbeddedModels.SMALL]

    assert len(default.voice_names) == 28
    assert set(default.voices) == STANDARD_VOICES
    assert set(default.voices.values()) <= default.voice_names
    assert small.voice_names == {"joe"}

"""The whole server with nothing set: real speech in, a real model, real speech out."""

from collections.abc import Iterator
from urllib.parse import unquote

import httpx2
import pytest

from app.core.config import EmbeddedModels
from app.services.local_service import LocalEngine, LocalTranscriber
from tests.embedded.conftest import DATA_DIR
from tests.embedded.conftest import embedded_weights as embedded_weights  # noqa: PLC0414  # a fixture
from tests.embedded.recordings import accepted, converted, word_error_rate, words
from tests.support.application import AUDIO
from tests.support.server_process import ServerProcess, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]

LINES = (AUDIO / "transcript.txt").read_text().splitlines()
KINDS = ("wav", "mp3", "m4a", "webm", "ogg", "flac")


@pytest.fixture(scope="module")
def server(
    embedded_weights: EmbeddedModels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "models").symlink_to(DATA_DIR / "models")
    with ServerProcess(folder, EMBEDDED_MODELS=embedded_weights.value) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


def test_agent_answers_in_text_and_remembers(client: httpx2.Client) -> None:
    session_id = open_session(client)

    replies = [
        client.post("/messages/text", json={"session_id": session_id, "content": content})
        for content in ("Hello!", "What did I say first?")
    ]

    for reply in replies:
        assert reply.status_code == 200, reply.text
        assert words(reply.json()["content"])
        assert reply.json()["usage"]["completion_tokens"] > 0


def test_each_format_is_heard_closely_and_answered_with_speech(client: httpx2.Client) -> None:
    pairs: list[tuple[str, str]] = []
    for number, kind in enumerate(KINDS * 2, start=1):
        session_id = open_session(client, max_output_tokens=16)
        line = (number - 1) % len(LINES) + 1
        speaker = "anna" if number % 2 else "mike"
        recording = converted(f"{speaker}_{line:02d}", kind)
        response = client.post(
            "/messages/voice",
            data={"session_id": session_id},
            files={"audio": ("recording", recording.data)},
        )
        assert response.status_code == 200, (kind, response.text)
        assert response.headers["content-type"] == "audio/mpeg"
        assert len(response.content) > 1000
        pairs.append((LINES[line - 1], unquote(response.headers["x-transcription"])))

    assert word_error_rate(pairs) <= 0.25, pairs


async def test_spoken_answer_can_be_transcribed_again(
    client: httpx2.Client,
    embedded_weights: EmbeddedModels,
) -> None:
    session_id = open_session(client, max_output_tokens=30)
    response = client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("recording", (AUDIO / "anna_03.wav").read_bytes())},
    )
    written = client.get(f"/sessions/{session_id}").json()["messages"][1]["content"]

    async with LocalEngine(models=embedded_weights, data_dir=DATA_DIR) as engine:
        recording = accepted(response.content)
        heard = await LocalTranscriber(engine).transcribe(recording, language="en")

    said, again = set(words(written)), set(words(heard.text))
    assert len(said & again) >= len(said) / 2, (written, heard.text)

"""Real speech through the official SDKs: recordings in, sound out, understood again.

The server runs the embedded engine, which recognizes and speaks for real.
"""

import io
import json
import shutil
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import openai
import pytest
from openai import OpenAI

from app.core.config import EmbeddedModels
from app.services.ports import AudioFormat
from tests.embedded.conftest import DATA_DIR
from tests.embedded.conftest import embedded_weights as embedded_weights  # noqa: PLC0414  # a fixture
from tests.embedded.recordings import ENGLISH, word_error_rate, words
from tests.openai_api.conftest import add_agent
from tests.support.application import AUDIO
from tests.support.generators import installed_node_modules, node, python_clients
from tests.support.server_process import ServerProcess
from tests.voice.sounds import encoded

pytestmark = [pytest.mark.embedded, pytest.mark.timeout(900)]

FOLDER = Path(__file__).parent
RECORDING = AUDIO / "anna_03.wav"
SENTENCE = "The quick brown fox jumps over the lazy dog. It was a fine day in the garden."
PROGRAM = """
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
with open(sys.argv[2], "rb") as file:
    heard = client.audio.transcriptions.create(file=file, model="agent-ada")
spoken = client.audio.speech.create(model="tts-1", voice="alloy", input=heard.text)
print(json.dumps({"heard": heard.text, "bytes": len(spoken.read())}))
"""


@pytest.fixture(scope="module")
def server(
    embedded_weights: EmbeddedModels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "models").symlink_to(DATA_DIR / "models")
    with ServerProcess(folder, EMBEDDED_MODELS=embedded_weights.value) as server:
        add_agent(server)
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        yield client


def test_recording_is_understood_with_its_times(client: OpenAI) -> None:
    verbose = client.audio.transcriptions.create(
        file=RECORDING, model="whisper-1", response_format="verbose_json"
    )
    subtitles = client.audio.transcriptions.create(
        file=RECORDING, model="whisper-1", response_format="vtt", prompt="A friendly chat."
    )

    assert word_error_rate([(ENGLISH["anna_03"], verbose.text)]) <= 0.25
    assert verbose.segments
    times = [(each.start, each.end) for each in verbose.segments]
    assert all(0 <= start < end <= float(verbose.duration) + 0.01 for start, end in times)
    assert words(" ".join(each.text for each in verbose.segments)) == words(verbose.text)
    assert str(subtitles).startswith("WEBVTT\n\n00:00:0")


def test_times_of_words_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(
            file=RECORDING,
            model="whisper-1",
            response_format="verbose_json",
            timestamp_granularities=["word"],
        )

    assert (refused.value.code, refused.value.param) == (
        "unsupported_value", "timestamp_granularities[]"
    )  # fmt: skip


@pytest.mark.parametrize("form", ["mp3", "opus", "aac", "flac", "wav"])
def test_speech_is_understood_again(
    client: OpenAI, form: Literal["mp3", "opus", "aac", "flac", "wav"]
) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=SENTENCE, response_format=form
    ) as answer:
        sound = b"".join(answer.iter_bytes())
        assert answer.headers["content-type"].startswith("audio/")
    if form == "aac":  # bare ADTS is not among the recordings that are taken
        sound = as_wav(sound)
    heard = client.audio.transcriptions.create(file=(f"a.{form}", sound), model="whisper-1")

    assert word_error_rate([(SENTENCE, heard.text)]) <= 0.35, heard.text


def as_wav(sound: bytes) -> bytes:
    library: Any = av
    with library.open(io.BytesIO(sound)) as container:
        resampler = library.AudioResampler("s16", "mono", 16_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    pcm = np.concatenate([frame.to_ndarray().ravel() for frame in frames])
    return encoded(pcm, AudioFormat.WAV)


def test_faster_speech_is_shorter(client: OpenAI) -> None:
    lengths = [
        len(
            client.audio.speech.create(
                model="tts-1", voice="alloy", input=SENTENCE, response_format="pcm", speed=speed
            ).read()
        )
        for speed in (0.8, 1, 1.6)
    ]

    assert lengths[0] > lengths[1] * 1.1 > lengths[2] * 1.4


def test_streams_have_the_events_of_the_sdk(client: OpenAI) -> None:
    with RECORDING.open("rb") as file:
        events = list(client.audio.transcriptions.create(file=file, model="whisper-1", stream=True))

    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert word_error_rate([(ENGLISH["anna_03"], done.text)]) <= 0.25


def test_version_2_of_the_sdk(server: ServerProcess) -> None:
    command = [str(python_clients()), "-c", PROGRAM, f"{server.url}/v1", str(RECORDING)]

    ran = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert word_error_rate([(ENGLISH["anna_03"], printed["heard"])]) <= 0.25
    assert printed["bytes"] > 5000


def test_node_sdk(server: ServerProcess, tmp_path: Path) -> None:
    shutil.copy(FOLDER / "audio.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed_node_modules(FOLDER / "tools", "openai"))
    target = tmp_path / "speech.wav"

    ran = subprocess.run(
        [node(), "audio.mjs", f"{server.url}/v1", str(RECORDING), str(target)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    heard = printed.pop("short")
    assert word_error_rate([(ENGLISH["anna_03"], heard)]) <= 0.25
    assert printed == {
        "usage": "duration",
        "text": f"{heard}\n",
        "segments": True,
        "duration": True,
        "kinds": ["transcript.text.delta", "transcript.text.done"],
        "streamed": heard,
        "type": "audio/wav",
        "error": {"name": "BadRequestError", "status": 400, "param": "input"},
    }
    with wave.open(io.BytesIO(target.read_bytes())) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)

"""smart-turn with its real weights, which are data: verified, from a folder or out of a package."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.services.audio.samples import HEADER_BYTES
from app.services.local_service.progress import LogReport
from app.services.local_service.smart_turn import SET, WEIGHT, log_mel_features
from app.services.local_service.turn_end import LocalTurnEndJudge
from app.services.local_service.weights import Fetch, WeightsUnavailable
from tests.embedded.conftest import DATA_DIR
from tests.support.application import AUDIO
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder with the weights, downloaded once."""
    root = DATA_DIR.absolute() / "models" / "turn-end"
    fetch = Fetch(root=root, models_dir=None, hub_url=None, report=LogReport())
    try:
        fetch.ensure(SET)
    except WeightsUnavailable as error:
        pytest.skip(f"no weights of smart-turn here: {' '.join(str(error).split())[:300]}")
    return root


@pytest.fixture
def judge(folder: Path, tmp_path: Path) -> Iterator[LocalTurnEndJudge]:
    judge = LocalTurnEndJudge(tmp_path, folder)
    yield judge
    judge.close()


def recording(name: str) -> bytes:
    return (AUDIO / name).read_bytes()[HEADER_BYTES:]


async def test_whole_sentences_are_finished_and_halves_are_not(judge: LocalTurnEndJudge) -> None:
    judge.prepare()
    judge.prepare()
    await until(lambda: judge.is_ready)
    names = [f"{who}_{n:02}.wav" for who in ("anna", "mike") for n in range(1, 11)]
    whole = [await judge.probability_of_end(recording(name)) for name in names]
    half = recording("anna_01.wav")
    first = await judge.probability_of_end(half[: len(half) // 4 * 2])

    assert sum(each >= 0.5 for each in whole) >= 18
    assert first < 0.5


async def test_files_with_another_hash_are_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / WEIGHT.path).write_bytes(bytes(WEIGHT.size_bytes))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # so that pip finds nothing either
    judge = LocalTurnEndJudge(tmp_path / "data", models)
    caplog.set_level("INFO")
    judge.prepare()
    await until(lambda: "semantic_vad is a silence of 600 ms" in caplog.text)

    assert not judge.is_ready
    assert "SHA-256 differs" in caplog.text


def test_features_are_whispers() -> None:
    """A tone of 1000 Hz is loudest in the mel that holds it, and silence is the floor."""
    times = np.arange(16_000 * 8) / 16_000
    features = log_mel_features(np.sin(2 * np.pi * 1000 * times).astype(np.float32))

    assert features.shape == (80, 800)
    assert int(features.mean(axis=1).argmax()) in range(26, 29)
    assert features.max() - features.min() == pytest.approx(2.0, abs=0.01)

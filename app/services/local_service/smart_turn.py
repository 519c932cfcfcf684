"""smart-turn v3.2: a model that hears whether somebody has finished what they want to say.

The weights are data: one file, verified by its hash, from `MODELS_DIR` or out of a package of its
makers that is neither installed nor imported. The model hears the last 8 s as Whisper's features.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.capabilities import Capability
from app.services.local_service.manifest import Archive, Client, Member, ModelSet, Weight

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
RATE_HZ = 16_000
_SECONDS = 8
_FRAME, _HOP, _MELS = 400, 160, 80
_KNEE_HZ, _KNEE_MELS = 1000.0, 15.0
_SMALLEST_POWER = 1e-10
_RANGE = 8.0
"""In powers of ten, below the loudest."""
_FULL_SCALE = np.float32(32768)

WEIGHT = Weight(
    Capability.STT,
    "smart-turn-v3.2-cpu.onnx",
    8679182,
    "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
    "BSD-2-Clause",
    pieces=(
        Member(
            Archive(
                Client.PIP,
                "pipecat-ai",
                "1.14.0",
                12109725,
                "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44",
            ),
            "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
            8679182,
        ),
    ),
)
SET = ModelSet(weights=(WEIGHT,), speech_rate_hz=0, chat_name="")


class SmartTurn:
    """The loaded model: 48 ms of CPU for each question, and 97 MB of memory."""

    def __init__(self, folder: Path) -> None:
        self._session = _open(folder / WEIGHT.path)

    def probability_of_end(self, pcm: bytes) -> float:
        """Return how likely it is (0 to 1) that the speaker of 16-bit samples has finished."""
        samples = np.frombuffer(pcm[-2 * _SECONDS * RATE_HZ :], "<i2").astype(np.float32)
        features = log_mel_features(samples / _FULL_SCALE)
        (answer,) = self._session.run(None, {"input_features": features[None]})
        return float(answer.ravel()[0])


def _open(model: Path) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime

    library: Any = onnxruntime
    options = library.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return library.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def log_mel_features(samples: Floats) -> Floats:
    """Return Whisper's features of the last 8 s: shape (80, 800), about -1 to 1.

    Silence stands before what is shorter, and loudness is normalized, as smart-turn was trained.
    """
    length = _SECONDS * RATE_HZ
    sound = np.zeros(length, np.float32)
    last = samples[-length:]
    sound[length - len(last) :] = last
    sound = (sound - sound.mean()) / np.sqrt(sound.var() + np.float32(1e-7))
    padded = np.pad(sound, _FRAME // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[:-1:_HOP]
    spectrum = np.fft.rfft(frames * _window())
    powers = (spectrum.real**2 + spectrum.imag**2) @ _mel_filters()
    logarithms = np.log10(np.maximum(powers, _SMALLEST_POWER)).T
    logarithms = np.maximum(logarithms, logarithms.max() - _RANGE)
    return ((logarithms + 4.0) / 4.0).astype(np.float32)


@cache
def _window() -> Floats:
    return np.hanning(_FRAME + 1)[:-1].astype(np.float32)


@cache
def _mel_filters() -> Floats:
    """Return Slaney's triangles of equal area, shape (frequencies, mels).

    Mels are linear up to 1000 Hz, and logarithmic above.
    """
    step = math.log(6.4) / 27
    highest = _KNEE_MELS + math.log(RATE_HZ / 2 / _KNEE_HZ) / step
    mels: Doubles = np.linspace(0, highest, _MELS + 2)
    linear = mels * (_KNEE_HZ / _KNEE_MELS)
    logarithmic = _KNEE_HZ * np.exp((mels - _KNEE_MELS) * step)
    hertz: Doubles = np.where(mels < _KNEE_MELS, linear, logarithmic)
    frequencies: Doubles = np.linspace(0, RATE_HZ / 2, _FRAME // 2 + 1)[:, None]
    rising = (frequencies - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    falling = (hertz[2:] - frequencies) / (hertz[2:] - hertz[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (hertz[2:] - hertz[:-2])
    return triangles.astype(np.float32)

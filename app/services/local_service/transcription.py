"""Speech recognition inside the worker: PyAV decodes, Silero finds speech, Whisper writes."""

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from app.services.local_service.tasks import Refused, Task

RATE_HZ = 16_000
MAX_SECONDS = 20 * 60
CHUNK_SECONDS = 25.0
MARGIN_SECONDS = 0.2
FRAMES_PER_SECOND = 100
TAIL_SAMPLES = RATE_HZ // 2


class Samples(Protocol):
    """Mono sound at `RATE_HZ`: a numpy array of float32 between -1 and 1."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, key: slice) -> "Samples":
        """Return a part of the sound."""
        ...


@dataclass(frozen=True, slots=True)
class Heard:
    """What was said, and the ISO 639-1 code of its language."""

    text: str
    language: str | None


class TranscriptionRunner:
    """Writes down recordings, one at a time."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        from faster_whisper import WhisperModel

        whisper: Any = WhisperModel
        self._whisper = whisper(
            str(folder),
            device="cpu",
            compute_type="int8",
            cpu_threads=threads,
            local_files_only=True,
        )
        self._turnstile = threading.Semaphore(1)

    def transcribe(self, task: Task, data: bytes, language: str | None) -> Heard:
        """Write down a recording in any container. Raises `Refused` and `Cancelled`."""
        samples = decode(data, task)
        with task.holding(self._turnstile):
            chunks = find_speech(samples)
            texts: list[str] = []
            spoken = self._known(language)
            for start, end in chunks:
                task.check()
                text, spoken = self._write(samples[start:end], spoken)
                texts.append(text)
        return Heard(" ".join(text for text in texts if text), spoken if chunks else None)

    def _known(self, language: str | None) -> str | None:
        """Return the language to assume; `None` where it must be heard first."""
        if not self._whisper.model.is_multilingual:
            return "en"
        if language and self._whisper.hf_tokenizer.token_to_id(f"<|{language}|>") is not None:
            return language
        return None

    def _write(self, samples: Samples, language: str | None) -> tuple[str, str]:
        """Write down at most `CHUNK_SECONDS` of speech."""
        import numpy as np

        numpy: Any = np
        seconds = len(samples) / RATE_HZ
        frames = window_seconds(seconds) * FRAMES_PER_SECOND
        features = self._whisper.feature_extractor(numpy.pad(samples, (0, TAIL_SAMPLES)))
        features = features[:, :frames]
        features = numpy.pad(features, ((0, 0), (0, frames - features.shape[1])))
        encoded = self._whisper.encode(features)
        if language is None:
            language = str(self._whisper.model.detect_language(encoded)[0][0][0])[2:-2]
        head = ["<|startoftranscript|>", "<|notimestamps|>"]
        if self._whisper.model.is_multilingual:
            head[1:1] = [f"<|{language}|>", "<|transcribe|>"]
        tokenizer = self._whisper.hf_tokenizer
        prompt = [tokenizer.token_to_id(token) for token in head]
        # A cap near the fastest speech: a model that loops is cut short.
        longest = min(448, int(20 + seconds * 8))
        result = self._whisper.model.generate(encoded, [prompt], beam_size=1, max_length=longest)
        return str(tokenizer.decode(result[0].sequences_ids[0])).strip(), language


def window_seconds(seconds: float) -> int:
    """Return how much the encoder looks at: in steps of 5 s, never "the clip plus 1 s".

    Whisper was trained on 30 s. It bears a shorter window that leaves some silence at the end;
    a tight one makes it repeat itself.
    """
    return min(30, max(10, math.ceil((seconds + 3) / 5) * 5))


def decode(data: bytes, task: Task) -> Samples:
    """Decode any container to `RATE_HZ` mono. Raises `Refused` and `Cancelled`."""
    import av
    import numpy as np

    library: Any = av
    numpy: Any = np
    pieces: list[Any] = []
    count = 0
    try:
        with library.open(io.BytesIO(data)) as container:
            resampler = library.AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
            for frame in container.decode(audio=0):
                task.check()
                pieces += [each.to_ndarray().ravel() for each in resampler.resample(frame)]
                count += frame.samples
                if count > MAX_SECONDS * frame.sample_rate:
                    raise Refused(f"The recording is longer than {MAX_SECONDS // 60} minutes.")
            pieces += [each.to_ndarray().ravel() for each in resampler.resample(None)]
    except (library.FFmpegError, IndexError, ValueError) as error:
        raise Refused("The recording cannot be decoded.") from error
    joined = numpy.concatenate(pieces) if pieces else numpy.zeros(0, numpy.int16)
    return cast("Samples", joined.astype(numpy.float32) / 32768)


def find_speech(samples: Samples) -> list[tuple[int, int]]:
    """Return the sample ranges that hold speech, each at most `CHUNK_SECONDS` long.

    Silence given to Whisper becomes "you" or "Thank you": it never sees any.
    """
    from faster_whisper import vad

    silero: Any = vad
    options = silero.VadOptions(max_speech_duration_s=CHUNK_SECONDS - 2 * MARGIN_SECONDS)
    found = [
        (int(each["start"]), int(each["end"]))
        for each in silero.get_speech_timestamps(samples, options)
    ]
    return joined_ranges(found, len(samples))


def joined_ranges(found: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Join neighbours while they fit into one chunk, and add a margin to each."""
    longest = int((CHUNK_SECONDS - 2 * MARGIN_SECONDS) * RATE_HZ)
    margin = int(MARGIN_SECONDS * RATE_HZ)
    joined: list[tuple[int, int]] = []
    for start, end in found:
        if joined and end - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return [(max(0, start - margin), min(length, end + margin)) for start, end in joined]

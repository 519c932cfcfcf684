"""Transcription inside the worker: Silero detects speech, Whisper transcribes."""

import io
import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from app.services.local_service.tasks import ModelQueue, Refused, Task, Urgency

RATE_HZ = 16_000
MAX_SECONDS = 20 * 60
CHUNK_SECONDS = 25.0
MARGIN_SECONDS = 0.2
FRAMES_PER_SECOND = 100
TAIL_SAMPLES = RATE_HZ // 2
PROMPT_TOKENS = 223
"""What Whisper takes of a prompt: its end."""
TIME_STEP_SECONDS = 0.02


Segment = tuple[str, float, float]
"""A text, and the seconds in which it is spoken."""


class Samples(Protocol):
    """Mono audio at `RATE_HZ`: a NumPy array of float32 between -1 and 1."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, key: slice) -> "Samples":
        """Return a range of the samples."""
        ...


@dataclass(frozen=True, slots=True)
class TranscriptionResult:
    """The transcript, and the ISO 639-1 code of its language."""

    text: str
    language: str | None
    segments: list[Segment]
    """Empty unless times were asked for."""


class TranscriptionRunner:
    """Transcribes recordings, one at a time."""

    def __init__(self, folder: Path, *, threads: int, queue: ModelQueue) -> None:
        from faster_whisper import WhisperModel

        whisper: Any = WhisperModel
        self._whisper = whisper(
            str(folder),
            device="cpu",
            compute_type="int8",
            cpu_threads=threads,
            local_files_only=True,
        )
        self._queue = queue

    def transcribe(  # noqa: PLR0913  # a request's fields
        self,
        task: Task,
        data: bytes,
        language: str | None,
        urgency: Urgency = Urgency.ENDED_SPEECH,
        *,
        prompt: str = "",
        has_times: bool = False,
    ) -> TranscriptionResult:
        """Transcribe a WAV recording of 16 kHz mono, in pieces between which others may be heard.

        Raises `Refused` and `Cancelled`.
        """
        samples = read_samples(data)
        with self._queue.holding(task, urgency):
            chunks = find_speech(samples)
        segments: list[Segment] = []
        known_language = self._known(language)
        for start, end in chunks:
            with self._queue.holding(task, urgency):
                tokens, known_language = self._write(
                    samples[start:end], known_language, prompt, has_times=has_times
                )
            segments += self._segments(tokens, start / RATE_HZ, end / RATE_HZ)
        return TranscriptionResult(
            " ".join(text for text, _, _ in segments),
            known_language if chunks else None,
            segments if has_times else [],
        )

    def _segments(
        self, tokens: Sequence[int], start_seconds: float, end_seconds: float
    ) -> list[Segment]:
        """Cut the tokens of a chunk, which lasts so long, at Whisper's times between them."""
        tokenizer = self._whisper.hf_tokenizer
        first_time = tokenizer.token_to_id("<|notimestamps|>") + 1
        segments: list[Segment] = []
        begun_at, spoken = start_seconds, list[int]()
        for token in [*tokens, None]:
            if token is not None and token < first_time:
                spoken.append(token)
                continue
            time = end_seconds
            if token is not None:
                elapsed = (token - first_time) * TIME_STEP_SECONDS
                time = min(end_seconds, max(begun_at, start_seconds + elapsed))
            if text := str(tokenizer.decode(spoken)).strip() if spoken else "":
                segments.append((text, round(begun_at, 2), round(time, 2)))
                spoken.clear()
            begun_at = time
        return segments

    def _known(self, language: str | None) -> str | None:
        """Return the language to transcribe; `None` where it must be detected."""
        if not self._whisper.model.is_multilingual:
            return "en"
        if language and self._whisper.hf_tokenizer.token_to_id(f"<|{language}|>") is not None:
            return language
        return None

    def _write(
        self, samples: Samples, language: str | None, prompt: str, *, has_times: bool
    ) -> tuple[list[int], str]:
        """Transcribe at most `CHUNK_SECONDS` of speech; return the tokens and their language."""
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
        head = ["<|startoftranscript|>"]
        if self._whisper.model.is_multilingual:
            head += [f"<|{language}|>", "<|transcribe|>"]
        if not has_times:
            head.append("<|notimestamps|>")
        tokenizer = self._whisper.hf_tokenizer
        start = [tokenizer.token_to_id(token) for token in head]
        if prompt.strip():
            given = tokenizer.encode(f" {prompt.strip()}", add_special_tokens=False).ids
            start = [tokenizer.token_to_id("<|startofprev|>"), *given[-PROMPT_TOKENS:], *start]
        # A limit just above the fastest speech ends the loops of the model early.
        longest = min(448, len(start) + int(16 + seconds * (10 if has_times else 8)))
        result = self._whisper.model.generate(encoded, [start], beam_size=1, max_length=longest)
        return list(result[0].sequences_ids[0]), language


def window_seconds(seconds: float) -> int:
    """Return the length of the encoder's window for a chunk: 10 to 30 s, in steps of 5 s.

    Whisper was trained on windows of 30 s. A shorter window works if it leaves some silence at the
    end; with a tight window ("the chunk plus 1 s") Whisper repeats itself.
    """
    return min(30, max(10, math.ceil((seconds + 3) / 5) * 5))


def read_samples(wav: bytes) -> Samples:
    """Return the samples of a recording as the upload check leaves it. Raises `Refused`."""
    import numpy as np

    numpy: Any = np
    try:
        with wave.open(io.BytesIO(wav)) as file:
            kind = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            pcm = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise Refused("The recording cannot be read.") from error
    if kind != (RATE_HZ, 1, 2):
        raise Refused("The recording is not of 16 kHz, mono, 16 bits.")
    if len(pcm) > 2 * MAX_SECONDS * RATE_HZ:
        raise Refused(f"The recording is longer than {MAX_SECONDS // 60} minutes.")
    return cast(
        "Samples", numpy.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(numpy.float32) / 32768
    )


def find_speech(samples: Samples) -> list[tuple[int, int]]:
    """Return the sample ranges that contain speech, each at most `CHUNK_SECONDS` long.

    Whisper transcribes silence as "you" or "Thank you", so it receives speech only.
    """
    from faster_whisper import vad

    silero: Any = vad
    options = silero.VadOptions(max_speech_duration_s=CHUNK_SECONDS - 2 * MARGIN_SECONDS)
    ranges = [
        (int(speech["start"]), int(speech["end"]))
        for speech in silero.get_speech_timestamps(samples, options)
    ]
    return joined_ranges(ranges, len(samples))


def joined_ranges(ranges: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Join adjacent ranges that fit into one chunk, and add a margin on both sides."""
    longest = int((CHUNK_SECONDS - 2 * MARGIN_SECONDS) * RATE_HZ)
    margin = int(MARGIN_SECONDS * RATE_HZ)
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and end - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return [(max(0, start - margin), min(length, end + margin)) for start, end in joined]

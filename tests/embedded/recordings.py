"""The spoken samples, other containers of them, and how wrong a transcript is."""

import io
import re
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np

from app.services.audio.job import read_recording
from app.services.ports import AudioFormat, Recording

AUDIO = Path(__file__).parents[1] / "audio"
SENTENCES = (AUDIO / "transcript.txt").read_text().splitlines()
SPANISH = "Hola, me gustaría reservar una mesa para dos personas el viernes por la noche."
ENGLISH = {
    f"{speaker}_{number:02}": sentence
    for speaker in ("anna", "mike")
    for number, sentence in enumerate(SENTENCES, start=1)
}
CODECS = {
    "mp3": ("mp3", "mp3", 24_000, AudioFormat.MP3),
    "m4a": ("mp4", "aac", 24_000, AudioFormat.MP4),
    "webm": ("webm", "libopus", 48_000, AudioFormat.WEBM),
    "ogg": ("ogg", "libopus", 48_000, AudioFormat.OGG),
    "flac": ("flac", "flac", 16_000, AudioFormat.FLAC),
}
NAMES = "zero one two three four five six seven eight nine"
DIGITS = {str(digit): name for digit, name in enumerate(NAMES.split(" "))}


def accepted(data: bytes) -> Recording:
    """Return what the upload check makes of a file."""
    fields, wav_file = read_recording({}, data)
    assert "code" not in fields, fields
    return Recording(bytes(wav_file), AudioFormat.WAV, fields["listened_seconds"])


def wav(name: str) -> Recording:
    data = (AUDIO / f"{name}.wav").read_bytes()
    return Recording(data, AudioFormat.WAV, (len(data) - 44) / 32_000)


def samples(name: str) -> bytes:
    """Return 16-bit mono PCM at 16 kHz."""
    with wave.open(str(AUDIO / f"{name}.wav")) as file:
        return file.readframes(file.getnframes())


def as_wav(pcm: bytes, rate_hz: int) -> Recording:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(pcm)
    return Recording(buffer.getvalue(), AudioFormat.WAV, len(pcm) / 2 / rate_hz)


def converted(name: str, kind: str) -> Recording:
    """Return the sample in another container, as a browser or telephone would send it."""
    if kind == "wav":
        return wav(name)
    container, codec, rate_hz, audio_format = CODECS[kind]
    library: Any = av
    buffer = io.BytesIO()
    with library.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout="mono")
        resampler = library.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=rate_hz
        )
        pcm = np.frombuffer(samples(name), "<i2").reshape(1, -1)
        frame = library.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = 16_000
        fifo = library.AudioFifo()
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(each)
        while (
            piece := fifo.read(stream.codec_context.frame_size or 1024, partial=True)
        ) is not None:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return Recording(buffer.getvalue(), audio_format, pcm.shape[1] / 16_000)


def words(text: str) -> list[str]:
    spelled = re.sub(r"\d", lambda match: f" {DIGITS[match.group()]} ", text.lower())
    return re.findall(r"[^\W\d_]+(?:'[a-z]+)?", spelled)


def word_errors(said: str, heard: str) -> int:
    """Count the words to insert, delete or exchange."""
    wanted, got = words(said), words(heard)
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(got, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    errors = sum(word_errors(said, heard) for said, heard in pairs)
    return errors / sum(len(words(said)) for said, _ in pairs)

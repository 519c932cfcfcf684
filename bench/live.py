"""`python -m bench.live`: measure live voice: interruption, first sound, and lines at once.

Linux only. Lines send a microphone's frames of 20 ms in real time; times run from the frame that
holds the first or the last sound. Where others use the machine, only the comparisons count.
"""

import argparse
import asyncio
import base64
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from websockets.asyncio.client import ClientConnection, connect

from app.services.audio.samples import HEADER_BYTES, to_pcm16
from app.services.audio.stream_resample import StreamResampler
from bench.processes import Server, cpu_seconds, free_port, memory_mb
from bench.report import table

_FRAME_SECONDS = 0.02
_FRAME_BYTES = 960
_LOUD = 0.02
_DELAYS_MS = (200, 200, 0, 150)
"""Speech to text, first token, each token, first byte of speech."""
_SETTINGS = {
    "LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "LIMIT_CONCURRENT_TURNS": "1000000000",
    "LIMIT_UPLOAD_MINUTES_PER_DAY": "0",
    "LIMIT_TOKENS_PER_DAY": "0",
    "LIMIT_LIVE_LINES": "1000",
    "LIMIT_LIVE_LINES_PER_KEY": "1000",
}
_ROOT = Path(__file__).parent.parent
_STARTED, _STOPPED = "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"
_SOUND, _DONE = "response.output_audio.delta", "response.done"


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording as frames that are ready to be sent."""

    frames: Sequence[str]
    first: int
    """The frame that holds the first sound."""
    last: int
    """The frame that holds the last one."""


@dataclass(slots=True)
class Line:
    """One open line: what came, and when."""

    socket: ClientConnection
    times: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Note each event, until the line is closed."""
        async for message in self.socket:
            text = message if isinstance(message, str) else message.decode()
            kind = text[9 : text.index('"', 9)]  # {"type":"...
            self.times.append((kind, time.perf_counter()))
            self.changed.set()

    async def send(self, frames: Sequence[str]) -> list[float]:
        """Send frames as a microphone does; return when each was sent."""
        begun, sent = time.perf_counter(), list[float]()
        for number, frame in enumerate(frames):
            await asyncio.sleep(max(0.0, begun + number * _FRAME_SECONDS - time.perf_counter()))
            sent.append(time.perf_counter())
            await self.socket.send(frame)
        return sent

    def first(self, kind: str, after: float) -> float | None:
        """Return when the first event of a kind came after a time."""
        return next((at for name, at in self.times if name == kind and at > after), None)

    async def until(self, kind: str, after: float) -> float:
        """Return the same; waits for it."""
        while (at := self.first(kind, after)) is None:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 60)
        return at


def _sound(name: str) -> Sound:
    data = (_ROOT / "tests" / "audio" / name).read_bytes()[HEADER_BYTES:]
    samples = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    louder = StreamResampler(16_000, 24_000).feed(samples)
    loud = np.flatnonzero(np.abs(louder) > _LOUD)
    pcm = to_pcm16(louder)
    pcm += bytes(-len(pcm) % _FRAME_BYTES)
    samples_a_frame = _FRAME_BYTES // 2
    frames = [
        _append(pcm[start : start + _FRAME_BYTES]) for start in range(0, len(pcm), _FRAME_BYTES)
    ]
    return Sound(frames, int(loud[0]) // samples_a_frame, int(loud[-1]) // samples_a_frame)


def _append(pcm: bytes) -> str:
    audio = base64.b64encode(pcm).decode()
    return orjson.dumps({"type": "input_audio_buffer.append", "audio": audio}).decode()


def _silence(seconds: float) -> list[str]:
    return [_append(bytes(_FRAME_BYTES))] * round(seconds / _FRAME_SECONDS)


@contextlib.contextmanager
def _servers(folder: Path, *delays_ms: float) -> Generator[Server]:
    port, server_port = free_port(), free_port()
    settings = {
        **_SETTINGS,
        "DATA_DIR": str(folder / "server"),
        "PORT": str(server_port),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "not-checked",
        "STT_MODEL": "transcribe",
        "TTS_MODEL": "speech",
        "CHAT_MODEL": "voice",
    }
    arguments = ["bench.voice_provider", str(port), *map(str, delays_ms)]
    with (
        Server(arguments, port, folder / "provider", {}),
        Server(["app.cli", "serve"], server_port, folder / "server", settings) as server,
    ):
        yield server


@contextlib.asynccontextmanager
async def _line(server: Server) -> AsyncGenerator[Line]:
    url = f"ws://127.0.0.1:{server.port}/v1/realtime?model=bench"
    async with connect(url, compression=None, max_size=None) as socket:
        line = Line(socket)
        listener = asyncio.get_running_loop().create_task(line.listen())
        try:
            await line.until("session.created", 0)
            yield line
        finally:
            listener.cancel()


@dataclass(slots=True)
class Exchange:
    """What one spoken exchange took, in milliseconds."""

    onset: float
    """From the first sound to `speech_started`."""
    share: float
    """From `speech_stopped` to the first sound of the answer."""
    answer: float
    """From the last sound to the first sound of the answer."""
    late_sounds: int
    """Sounds of the interrupted answer that came behind `speech_started`."""


async def _exchange(line: Line, sound: Sound) -> Exchange:
    """Interrupt whatever is said, and wait for the answer's first sound."""
    begun = time.perf_counter()
    sent = await line.send([*sound.frames, *_silence(1.0)])
    started = await line.until(_STARTED, begun)
    stopped = await line.until(_STOPPED, started)
    first = await line.until(_SOUND, stopped)
    late = sum(1 for kind, at in line.times if kind == _SOUND and started < at < stopped)
    last_frame = len(sound.frames) - 1 if sound.last >= len(sent) else sound.last
    return Exchange(
        (started - sent[sound.first]) * 1000,
        (first - stopped) * 1000,
        (first - sent[last_frame]) * 1000,
        late,
    )


async def _one_line(server: Server, count: int) -> list[Exchange]:
    sounds = [_sound(f"anna_{number:02}.wav") for number in range(1, 11)]
    async with _line(server) as line:
        return [await _exchange(line, sounds[number % 10]) for number in range(count)]


async def _many_lines(server: Server, count: int, exchanges: int) -> tuple[list[Exchange], float]:
    """Return the exchanges of many lines that talk at once, and the seconds that it took."""
    sound = _sound("anna_01.wav")

    async def talk(number: int) -> list[Exchange]:
        async with _line(server) as line:
            await line.send(_silence(number % 10 * 0.4 + 0.02))
            return [await _exchange(line, sound) for _ in range(exchanges)]

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        lines = [tasks.create_task(talk(number)) for number in range(count)]
    seconds = time.perf_counter() - begun
    return [each for line in lines for each in line.result()], seconds


def _quantile(
    exchanges: Sequence[Exchange], of: Callable[[Exchange], float], share: float
) -> float:
    ordered = sorted(map(of, exchanges))
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _rows_of_one(folder: Path, count: int) -> list[list[str]]:
    _log("one line, a provider of no latency")
    with _servers(folder / "instant", 0, 0, 0, 0) as server:
        asyncio.run(_one_line(server, 2))
        instant = asyncio.run(_one_line(server, count))
    _log("one line, a provider of 200/200/150 ms")
    with _servers(folder / "paced", *_DELAYS_MS) as server:
        asyncio.run(_one_line(server, 1))
        paced = asyncio.run(_one_line(server, count))
    onset = [_quantile(instant + paced, lambda each: each.onset, share) for share in (0.5, 1.0)]
    shares = [_quantile(instant, lambda each: each.share, share) for share in (0.5, 0.95)]
    late = sum(each.late_sounds for each in instant + paced)
    answer = _quantile(paced, lambda each: each.answer, 0.5)
    return [
        _row("onset of speech to `speech_started`, p50 ms", onset[0], 120),
        _row("the same, most", onset[1], 200),
        _row("sounds of the old answer behind it", late, 0),
        _row("end of turn to first sound, no latency: p50 ms", shares[0], 15),
        _row("the same, p95", shares[1], 40),
        _row("end of speech to first sound, 200/200/150 ms: p50", answer, 970),
    ]


def _rows_of_many(folder: Path, count: int, exchanges: int) -> list[list[str]]:
    _log(f"{count} lines that talk")
    with _servers(folder / "many", *_DELAYS_MS) as server:
        single = asyncio.run(_one_line(server, 4))
        memory, spent = memory_mb(server.pid), cpu_seconds(server.pid)
        many, seconds = asyncio.run(_many_lines(server, count, exchanges))
        spent = (cpu_seconds(server.pid) - spent) * 1000 / count / seconds
        memory = (memory_mb(server.pid) - memory) / count
    alone = _quantile(single, lambda each: each.share, 0.5)
    slower = _quantile(many, lambda each: each.share, 0.95) - alone
    return [
        _row(f"{count} lines: p95 of first sound over one line's p50, ms", slower, 50),
        _row(f"{count} lines: CPU-ms a line and second", spent, 12),
        _row(f"{count} lines: MB a line", memory, 1.5),
    ]


def _row(what: str, value: float, goal: float) -> list[str]:
    return [what, f"{value:.1f}", f"{goal:g}", "ok" if value <= goal else "above"]


def _log(text: str) -> None:
    sys.stderr.write(f"{text} ...\n")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.live")
    parser.add_argument("--exchanges", type=int, default=20)
    parser.add_argument("--lines", type=int, default=50)
    options: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = [
            *_rows_of_one(Path(name), options.exchanges),
            *_rows_of_many(Path(name), options.lines, 3),
        ]
    sys.stdout.write(table([["what", "measured", "goal", ""], *rows]) + "\n")


if __name__ == "__main__":
    main()

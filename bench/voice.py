"""`python -m bench.voice`: how soon a voice turn is heard, and what is left of its sound.

Linux only. It needs FFmpeg for the decoded length, and with `--embedded` the embedded engine.
"""

import argparse
import asyncio
import contextlib
import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.processes import Server, cpu_seconds, free_port, memory_mb
from bench.report import table
from bench.voice_embedded import embedded_rows
from bench.voice_provider import (
    ANSWER,
    SAMPLES_PER_CHARACTER,
    tokens,
)
from bench.voice_uploads import RECORDING, hours_of_opus, upload
from bench.wire import ClientConnection, post

_DELAYS_MS = (400, 400, 20, 300)
"""Speech to text, first token, each token, speech to its first byte."""
_ENCODER_DELAY_SAMPLES = 576 + 529 + 2 * 576
"""LAME's delay, the decoder's, and the last frames' padding."""
_NEVER_REACHED = {
    "LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "LIMIT_CONCURRENT_TURNS": "1000000000",
}
"""On a busy machine more turns than a key may have are in flight."""
_WARM_UP_TURNS = 10
_TURNS = 100
_PACED_TURNS = 10
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Heard:
    """One voice turn as a client has it."""

    first_audio_ms: float
    total_ms: float
    mp3: bytes
    is_complete: bool


class Voices:
    """A running server with its provider."""

    def __init__(self, server: Server, provider: Server) -> None:
        self.server = server
        self.provider = provider
        self._agent_id = self._post("/agents", {"name": "Ada"})["id"]

    def session_id(self) -> str:
        """Open a session."""
        return self._post("/sessions", {"agent_id": self._agent_id})["id"]

    def _post(self, path: str, body: object) -> Any:  # noqa: ANN401  # JSON
        headers = {"Content-Type": "application/json"}
        return self._ask("POST", self.server.port, path, orjson.dumps(body), headers)

    def provider_calls(self) -> int:
        """Return how many requests the provider has had."""
        return sum(self._ask("GET", self.provider.port, "/counts").values())

    def turn(self, session_id: str) -> Any:  # noqa: ANN401  # JSON
        """Return the session's last turn, as it is exported."""
        path = f"/sessions/{session_id}/export?audio=true"
        return self._ask("GET", self.server.port, path)

    def _ask(self, method: str, port: int, path: str, *rest: Any) -> Any:  # noqa: ANN401  # JSON
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, *rest)
        read = orjson.loads(connection.getresponse().read())
        connection.close()
        return read


@contextlib.contextmanager
def _voices(folder: Path, *delays_ms: float) -> Generator[Voices]:
    """Start a provider with these delays, and our server on SQLite with it."""
    port, own_port = free_port(), free_port()
    arguments = ["bench.voice_provider", str(port), *map(str, delays_ms)]
    settings = {
        **_NEVER_REACHED,
        "DATA_DIR": str(folder / "server"),
        "PORT": str(own_port),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "not-checked",
        "STT_MODEL": "transcribe",
        "TTS_MODEL": "speech",
        "CHAT_MODEL": "voice",
    }
    with (
        Server(arguments, port, folder / "provider", {}) as provider,
        Server(["app.cli", "serve"], own_port, folder / "server", settings) as server,
    ):
        yield Voices(server, provider)


async def _speak(voices: Voices, session_id: str) -> Heard:
    """Send a recording and hear the answer."""
    connection = await ClientConnection.open(voices.server.port)
    request = upload(session_id, RECORDING)
    pieces: list[bytes] = []
    first_at = 0.0

    def take(piece: bytes) -> None:
        nonlocal first_at
        first_at = first_at or time.perf_counter()
        pieces.append(piece)

    sent_at = time.perf_counter()
    try:
        status = await connection.exchange(request, take)
    except ConnectionError:
        status = 0
    connection.close()
    return Heard(
        (first_at - sent_at) * 1000,
        (time.perf_counter() - sent_at) * 1000,
        b"".join(pieces),
        status == http.HTTPStatus.OK,
    )


async def _step_by_step(voices: Voices) -> float:
    """Ask the provider for each step once the one before it is over; return milliseconds.

    They end with the first sound of the whole answer, as a client without a platform would hear it.
    """
    connection = await ClientConnection.open(voices.provider.port)
    first_at = 0.0

    def take(_piece: bytes) -> None:
        nonlocal first_at
        first_at = first_at or time.perf_counter()

    sent_at = time.perf_counter()
    for path, body in (
        ("transcriptions", RECORDING),
        ("completions", b"{}"),
        ("speech", orjson.dumps({"input": ANSWER})),
    ):
        first_at = 0.0
        await connection.exchange(post(f"/v1/{path}", body), take)
    connection.close()
    return (first_at - sent_at) * 1000


async def _one_by_one(voices: Voices, count: int) -> list[Heard]:
    return [await _speak(voices, voices.session_id()) for _ in range(count)]


async def _at_once(voices: Voices, count: int, apart_seconds: float = 0) -> list[Heard]:
    """Send `count` turns, one each `apart_seconds`."""
    sessions = [voices.session_id() for _ in range(count)]

    async def speak(number: int, session_id: str) -> Heard:
        await asyncio.sleep(number * apart_seconds)
        return await _speak(voices, session_id)

    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(speak(*each)) for each in enumerate(sessions)]
    return [each.result() for each in begun]


@dataclass(frozen=True, slots=True)
class Crowd:
    """Turns that were sent together, and the CPU they took, in milliseconds for each."""

    heard: Sequence[Heard]
    server_ms: float
    provider_ms: float
    client_ms: float

    @property
    def complete(self) -> int:
        """How many were heard to their end."""
        return sum(each.is_complete for each in self.heard)

    @property
    def cpu(self) -> str:
        """The CPU as a cell."""
        return f"{self.server_ms:.0f}; {self.provider_ms:.1f}; {self.client_ms:.1f}"


def _crowd(voices: Voices, count: int, apart_seconds: float = 0) -> Crowd:
    def spent() -> tuple[float, float, float]:
        pids = voices.server.pid, voices.provider.pid
        return cpu_seconds(pids[0]), cpu_seconds(pids[1]), time.process_time()

    before = spent()
    heard = asyncio.run(_at_once(voices, count, apart_seconds))
    each_ms = [(after - b) * 1000 / count for after, b in zip(spent(), before, strict=True)]
    return Crowd(heard, *each_ms)


def _quantile(heard: Sequence[Heard], share: float, less_ms: float = 0) -> float:
    ordered = sorted(each.first_audio_ms - less_ms for each in heard)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _first_piece_tokens() -> int:
    """Return how many tokens have come when the first clause is whole."""
    clause = ANSWER[: ANSWER.index(",") + 1]
    written = ""
    for count, token in enumerate(tokens(), start=1):
        written += token
        if len(written) >= len(clause):
            return count
    raise AssertionError("the answer has a clause")


def _decoded_samples(mp3: bytes) -> tuple[int, int]:
    """Return how many samples FFmpeg makes of it, and how many errors it finds."""
    ran = subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "mp3", "-i", "pipe:", "-f", "s16le", "-ac", "1", "pipe:"],  # noqa: S607
        input=mp3,
        capture_output=True,
        check=True,
    )
    return len(ran.stdout) // 2, len(ran.stderr.splitlines())


def _measure_share(folder: Path) -> list[list[str]]:
    _say("zero-latency provider")
    with _voices(folder, 0, 0, 0, 0) as voices:
        asyncio.run(_one_by_one(voices, _WARM_UP_TURNS))
        alone = asyncio.run(_one_by_one(voices, _TURNS))
        _say("50 at once, zero latency")
        together = _crowd(voices, _AT_ONCE)
        session_id = voices.session_id()
        heard = asyncio.run(_speak(voices, session_id))
        clips = voices.turn(session_id)["audio"][0]["clips"]
        refusal = _measure_refusal(voices)
    expected = sum(len(clip["text"]) for clip in clips) * SAMPLES_PER_CHARACTER
    decoded, errors = _decoded_samples(heard.mp3)
    surplus = decoded - expected
    even = 0 <= surplus <= _ENCODER_DELAY_SAMPLES and not errors and len(clips) >= 10  # noqa: PLR2004
    p50, p95 = _quantile(alone, 0.5), _quantile(alone, 0.95)
    crowd = _quantile(together.heard, 0.95)
    return [
        ["our share of first audio, p50 ms", f"{p50:.1f}", "25", _verdict(p50 <= 25)],  # noqa: PLR2004
        ["our share of first audio, p95 ms", f"{p95:.1f}", "60", _verdict(p95 <= 60)],  # noqa: PLR2004
        [
            f"decoded length of {len(clips)} pieces, {expected} samples",
            f"{surplus:+} samples, {errors} errors",
            f"+{_ENCODER_DELAY_SAMPLES}",
            _verdict(even),
        ],
        [
            "50 turns in the same instant, zero latency: complete; p95 of first audio ms",
            f"{together.complete}; {crowd:.0f}",
            "50; 250",
            _verdict(together.complete == _AT_ONCE and crowd <= 250),  # noqa: PLR2004
        ],
        _cpu_row(together),
        *refusal,
    ]


def _measure_paced(folder: Path) -> list[list[str]]:
    _say("paced provider")
    stt, first, each, speech = _DELAYS_MS
    critical_ms = stt + first + (_first_piece_tokens() - 1) * each + speech
    stepwise_ms = stt + first + len(tokens()) * each + speech
    with _voices(folder, *_DELAYS_MS) as voices:
        asyncio.run(_one_by_one(voices, 2))
        alone = asyncio.run(_one_by_one(voices, _PACED_TURNS))
        _say("step by step")
        stepwise = [asyncio.run(_step_by_step(voices)) for _ in range(_PACED_TURNS)]
        _say("50 at once, paced")
        together = _crowd(voices, _AT_ONCE)
        _say("50 in flight, paced")
        in_flight = _crowd(voices, 2 * _AT_ONCE, stepwise_ms / 1000 / _AT_ONCE)
    ratio = _quantile(alone, 0.5) / critical_ms
    crowd = _quantile(together.heard, 0.95, critical_ms)
    steady = _quantile(in_flight.heard, 0.95, critical_ms)
    return [
        [
            f"first audio over the critical path of {critical_ms} ms",
            f"{ratio:.3f}",
            "1.05",
            _verdict(ratio <= 1.05),  # noqa: PLR2004
        ],
        [
            f"the same step by step, which adds up to {stepwise_ms} ms",
            f"{sorted(stepwise)[_PACED_TURNS // 2] / critical_ms:.2f}",
            "",
            "",
        ],
        [
            "50 turns in the same instant, paced: complete; p95 of our share ms",
            f"{together.complete}; {crowd:.0f}",
            "50; 250",
            _verdict(together.complete == _AT_ONCE and crowd <= 250),  # noqa: PLR2004
        ],
        _cpu_row(together),
        [
            "50 turns in flight, paced, one arriving each 50 ms: complete of 100; p95 ms",
            f"{in_flight.complete}; {steady:.0f}",
            "100; 250",
            _verdict(in_flight.complete == 2 * _AT_ONCE and steady <= 250),  # noqa: PLR2004
        ],
    ]


def _measure_refusal(voices: Voices) -> list[list[str]]:
    """Send 25 MB of Opus that would play for hours."""
    _say("25 MB of Opus")
    data, hours = hours_of_opus()
    idle_mb, calls = memory_mb(voices.server.pid), voices.provider_calls()
    request = upload(voices.session_id(), data)

    async def send() -> tuple[int, float, float]:
        connection = await ClientConnection.open(voices.server.port)
        sent_at = time.perf_counter()
        peak_mb = idle_mb
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(connection.exchange(request, lambda _piece: None))
            while not asked.done():
                peak_mb = max(peak_mb, memory_mb(voices.server.pid))
                await asyncio.sleep(0.005)
        return asked.result(), time.perf_counter() - sent_at, peak_mb - idle_mb

    status, seconds, peak_mb = asyncio.run(send())
    called = voices.provider_calls() - calls
    good = status == 422 and seconds <= 2 and peak_mb <= 64 and not called  # noqa: PLR2004
    return [
        [
            f"25 MB of Opus, {hours:.1f} hours: status; seconds; MB above idle; provider calls",
            f"{status}; {seconds:.2f}; {peak_mb:.0f}; {called}",
            "422; 2; 64; 0",
            _verdict(good),
        ]
    ]


def _cpu_row(crowd: Crowd) -> list[str]:
    return ["their CPU-ms a turn, to its end: server; provider; load generator", crowd.cpu, "", ""]


def _verdict(is_good: bool) -> str:  # noqa: FBT001
    return "" if is_good else "MISSED"


def _say(what: str) -> None:
    sys.stderr.write(f"bench: {what}\n")


def main() -> int:
    """Run the bench; what it finds is never an error."""
    parser = argparse.ArgumentParser(prog="bench.voice", description="Measure voice turns.")
    parser.add_argument(
        "--embedded", metavar="MODELS", help="also the embedded engine, whose models are there"
    )
    parser.add_argument("--models", default="small", help="small (the default) or default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-voice-") as name:
        folder = Path(name)
        rows = [*_measure_share(folder / "fast"), *_measure_paced(folder / "paced")]
        sys.stdout.write(table([["voice", "measured", "must reach", ""], *rows]) + "\n")
        if options.embedded:
            _say("the embedded engine")
            cells = embedded_rows(Path(options.embedded), folder / "embedded", options.models)
            sys.stdout.write("\n" + table(cells) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench.voice`: measure the time to first audio of voice turns, and check the MP3.

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
from bench.voice_uploads import BROWSER_RECORDING, RECORDING, hours_of_opus, upload
from bench.wire import ClientConnection, post

_DELAYS_MS = (400, 400, 20, 300)
"""The provider's delays: speech to text, first token, each token, first byte of speech."""
_ENCODER_DELAY_SAMPLES = 576 + 529 + 2 * 576
"""The delay of LAME, the delay of the decoder, and the padding of the last frames."""
_NEVER_REACHED = {
    "LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "LIMIT_CONCURRENT_TURNS": "1000000000",
}
"""Limits above the defaults, since more turns than a key may have are in flight at once."""
_WARM_UP_TURNS = 10
_TURNS = 100
_PACED_TURNS = 10
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class VoiceResponse:
    """The response to one voice turn."""

    first_audio_ms: float
    total_ms: float
    mp3: bytes
    is_complete: bool


class VoiceClient:
    """A client of a running server and of its provider."""

    def __init__(self, server: Server, provider: Server) -> None:
        self.server = server
        self.provider = provider
        self._agent_id = self._post("/agents", {"name": "Ada"})["id"]

    def session_id(self) -> str:
        """Create a session and return its id."""
        return self._post("/sessions", {"agent_id": self._agent_id})["id"]

    def _post(self, path: str, body: object) -> Any:  # noqa: ANN401  # JSON
        headers = {"Content-Type": "application/json"}
        return self._ask("POST", self.server.port, path, orjson.dumps(body), headers)

    def provider_calls(self) -> int:
        """Return the number of requests that the provider has received."""
        return sum(self._ask("GET", self.provider.port, "/counts").values())

    def turn(self, session_id: str) -> Any:  # noqa: ANN401  # JSON
        """Return the export of the session with its audio."""
        path = f"/sessions/{session_id}/export?audio=true"
        return self._ask("GET", self.server.port, path)

    def _ask(self, method: str, port: int, path: str, *rest: Any) -> Any:  # noqa: ANN401  # JSON
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, *rest)
        read = orjson.loads(connection.getresponse().read())
        connection.close()
        return read


@contextlib.contextmanager
def _start_servers(folder: Path, *delays_ms: float) -> Generator[VoiceClient]:
    """Start a provider with these delays, and our server with it on SQLite."""
    port, server_port = free_port(), free_port()
    arguments = ["bench.voice_provider", str(port), *map(str, delays_ms)]
    settings = {
        **_NEVER_REACHED,
        "DATA_DIR": str(folder / "server"),
        "PORT": str(server_port),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": "not-checked",
        "STT_MODEL": "transcribe",
        "TTS_MODEL": "speech",
        "CHAT_MODEL": "voice",
    }
    with (
        Server(arguments, port, folder / "provider", {}) as provider,
        Server(["app.cli", "serve"], server_port, folder / "server", settings) as server,
    ):
        yield VoiceClient(server, provider)


async def _speak(
    client: VoiceClient, session_id: str, recording: bytes = RECORDING
) -> VoiceResponse:
    """Send a recording and receive the spoken answer."""
    connection = await ClientConnection.open(client.server.port)
    request = upload(session_id, recording)
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
    return VoiceResponse(
        (first_at - sent_at) * 1000,
        (time.perf_counter() - sent_at) * 1000,
        b"".join(pieces),
        status == http.HTTPStatus.OK,
    )


async def _step_by_step(client: VoiceClient) -> float:
    """Call the provider's endpoints one after the other; return the milliseconds to first audio.

    This is what a client without a platform does: it synthesizes the whole answer at the end.
    """
    connection = await ClientConnection.open(client.provider.port)
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


async def _one_by_one(client: VoiceClient, count: int) -> list[VoiceResponse]:
    return [await _speak(client, client.session_id()) for _ in range(count)]


async def _alternating(
    client: VoiceClient, count: int, recordings: Sequence[bytes]
) -> list[list[VoiceResponse]]:
    """Send each of `recordings` so often, by turns: a busy machine slows them down alike."""
    rounds = [
        [await _speak(client, client.session_id(), each) for each in recordings]
        for _ in range(count)
    ]
    return [list(responses) for responses in zip(*rounds, strict=True)]


async def _at_once(
    client: VoiceClient, count: int, apart_seconds: float = 0
) -> list[VoiceResponse]:
    """Send `count` turns, one every `apart_seconds`."""
    sessions = [client.session_id() for _ in range(count)]

    async def speak(number: int, session_id: str) -> VoiceResponse:
        await asyncio.sleep(number * apart_seconds)
        return await _speak(client, session_id)

    async with asyncio.TaskGroup() as tasks:
        turns = [tasks.create_task(speak(*each)) for each in enumerate(sessions)]
    return [each.result() for each in turns]


@dataclass(frozen=True, slots=True)
class Crowd:
    """Turns that were sent together, and their CPU in milliseconds per turn."""

    responses: Sequence[VoiceResponse]
    server_ms: float
    provider_ms: float
    client_ms: float

    @property
    def complete(self) -> int:
        """The number of turns that were received completely."""
        return sum(each.is_complete for each in self.responses)

    @property
    def cpu(self) -> str:
        """The CPU of server, provider and client, as a table cell."""
        return f"{self.server_ms:.0f}; {self.provider_ms:.1f}; {self.client_ms:.1f}"


def _crowd(client: VoiceClient, count: int, apart_seconds: float = 0) -> Crowd:
    def spent() -> tuple[float, float, float]:
        pids = client.server.pid, client.provider.pid
        return cpu_seconds(pids[0]), cpu_seconds(pids[1]), time.process_time()

    before = spent()
    responses = asyncio.run(_at_once(client, count, apart_seconds))
    each_ms = [(after - b) * 1000 / count for after, b in zip(spent(), before, strict=True)]
    return Crowd(responses, *each_ms)


def _quantile(responses: Sequence[VoiceResponse], share: float, less_ms: float = 0) -> float:
    ordered = sorted(each.first_audio_ms - less_ms for each in responses)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _first_piece_tokens() -> int:
    """Return the number of tokens up to the end of the first clause."""
    clause = ANSWER[: ANSWER.index(",") + 1]
    text = ""
    for count, token in enumerate(tokens(), start=1):
        text += token
        if len(text) >= len(clause):
            return count
    raise AssertionError("unreachable: the tokens contain the first clause")


def _decoded_samples(mp3: bytes) -> tuple[int, int]:
    """Return the number of samples that FFmpeg decodes, and the number of errors it reports."""
    completed = subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "mp3", "-i", "pipe:", "-f", "s16le", "-ac", "1", "pipe:"],  # noqa: S607
        input=mp3,
        capture_output=True,
        check=True,
    )
    return len(completed.stdout) // 2, len(completed.stderr.splitlines())


def _measure_share(folder: Path) -> list[list[str]]:
    _log("zero-latency provider")
    with _start_servers(folder, 0, 0, 0, 0) as client:
        asyncio.run(_one_by_one(client, _WARM_UP_TURNS))
        single = asyncio.run(_one_by_one(client, _TURNS))
        _log("a browser's WebM")
        kinds = (RECORDING, BROWSER_RECORDING)
        plain, browser = asyncio.run(_alternating(client, _TURNS // 2, kinds))
        _log("50 at once, zero latency")
        burst = _crowd(client, _AT_ONCE)
        session_id = client.session_id()
        response = asyncio.run(_speak(client, session_id))
        clips = client.turn(session_id)["audio"][0]["clips"]
        refusal = _measure_refusal(client)
    expected = sum(len(clip["text"]) for clip in clips) * SAMPLES_PER_CHARACTER
    decoded, errors = _decoded_samples(response.mp3)
    surplus = decoded - expected
    is_exact = 0 <= surplus <= _ENCODER_DELAY_SAMPLES and not errors and len(clips) >= 10  # noqa: PLR2004
    p50, p95 = _quantile(single, 0.5), _quantile(single, 0.95)
    crowd = _quantile(burst.responses, 0.95)
    webm = _quantile(browser, 0.5)
    return [
        ["our share of first audio, p50 ms", f"{p50:.1f}", "25", _verdict(p50 <= 25)],  # noqa: PLR2004
        ["our share of first audio, p95 ms", f"{p95:.1f}", "60", _verdict(p95 <= 60)],  # noqa: PLR2004
        [
            "the same for a browser's WebM, p50 ms; over WAV by turns with it",
            f"{webm:.1f}; {webm / _quantile(plain, 0.5):.1f}",
            "25",
            _verdict(webm <= 25),  # noqa: PLR2004
        ],
        [
            f"decoded length of {len(clips)} pieces, {expected} samples",
            f"{surplus:+} samples, {errors} errors",
            f"+{_ENCODER_DELAY_SAMPLES}",
            _verdict(is_exact),
        ],
        [
            "50 turns in the same instant, zero latency: complete; p95 of first audio ms",
            f"{burst.complete}; {crowd:.0f}",
            "50; 250",
            _verdict(burst.complete == _AT_ONCE and crowd <= 250),  # noqa: PLR2004
        ],
        _cpu_row(burst),
        *refusal,
    ]


def _measure_paced(folder: Path) -> list[list[str]]:
    _log("paced provider")
    stt, first, each, speech = _DELAYS_MS
    critical_ms = stt + first + (_first_piece_tokens() - 1) * each + speech
    stepwise_ms = stt + first + len(tokens()) * each + speech
    with _start_servers(folder, *_DELAYS_MS) as client:
        asyncio.run(_one_by_one(client, 2))
        single = asyncio.run(_one_by_one(client, _PACED_TURNS))
        _log("step by step")
        stepwise = [asyncio.run(_step_by_step(client)) for _ in range(_PACED_TURNS)]
        _log("50 at once, paced")
        burst = _crowd(client, _AT_ONCE)
        _log("50 in flight, paced")
        in_flight = _crowd(client, 2 * _AT_ONCE, stepwise_ms / 1000 / _AT_ONCE)
    ratio = _quantile(single, 0.5) / critical_ms
    crowd = _quantile(burst.responses, 0.95, critical_ms)
    steady = _quantile(in_flight.responses, 0.95, critical_ms)
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
            f"{burst.complete}; {crowd:.0f}",
            "50; 250",
            _verdict(burst.complete == _AT_ONCE and crowd <= 250),  # noqa: PLR2004
        ],
        _cpu_row(burst),
        [
            "50 turns in flight, paced, one arriving each 50 ms: complete of 100; p95 ms",
            f"{in_flight.complete}; {steady:.0f}",
            "100; 250",
            _verdict(in_flight.complete == 2 * _AT_ONCE and steady <= 250),  # noqa: PLR2004
        ],
    ]


def _measure_refusal(client: VoiceClient) -> list[list[str]]:
    """Measure the refusal of 25 MB of Opus that would play for hours."""
    _log("25 MB of Opus")
    data, hours = hours_of_opus()
    idle_mb, calls = memory_mb(client.server.pid), client.provider_calls()
    request = upload(client.session_id(), data)

    async def send() -> tuple[int, float, float]:
        connection = await ClientConnection.open(client.server.port)
        sent_at = time.perf_counter()
        peak_mb = idle_mb
        async with asyncio.TaskGroup() as tasks:
            exchange = tasks.create_task(connection.exchange(request, lambda _piece: None))
            while not exchange.done():
                peak_mb = max(peak_mb, memory_mb(client.server.pid))
                await asyncio.sleep(0.005)
        return exchange.result(), time.perf_counter() - sent_at, peak_mb - idle_mb

    status, seconds, peak_mb = asyncio.run(send())
    new_calls = client.provider_calls() - calls
    is_good = status == 422 and seconds <= 2 and peak_mb <= 64 and not new_calls  # noqa: PLR2004
    return [
        [
            f"25 MB of Opus, {hours:.1f} hours: status; seconds; MB above idle; provider calls",
            f"{status}; {seconds:.2f}; {peak_mb:.0f}; {new_calls}",
            "422; 2; 64; 0",
            _verdict(is_good),
        ]
    ]


def _cpu_row(crowd: Crowd) -> list[str]:
    return ["CPU-ms per turn of the row above: server; provider; client", crowd.cpu, "", ""]


def _verdict(is_good: bool) -> str:  # noqa: FBT001
    return "" if is_good else "MISSED"


def _log(message: str) -> None:
    sys.stderr.write(f"bench: {message}\n")


def main() -> int:
    """Run the benchmark; the exit status does not depend on what it measures."""
    parser = argparse.ArgumentParser(prog="bench.voice", description="Measure voice turns.")
    parser.add_argument(
        "--embedded",
        metavar="MODELS",
        help="also measure the embedded engine, with the models in this folder",
    )
    parser.add_argument(
        "--models", default="small", help="the set of embedded models: small (default) or default"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-voice-") as name:
        folder = Path(name)
        rows = [*_measure_share(folder / "fast"), *_measure_paced(folder / "paced")]
        sys.stdout.write(table([["voice", "measured", "must reach", ""], *rows]) + "\n")
        if options.embedded:
            _log("the embedded engine")
            cells = embedded_rows(Path(options.embedded), folder / "embedded", options.models)
            sys.stdout.write("\n" + table(cells) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

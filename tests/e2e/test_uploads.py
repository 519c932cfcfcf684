"""Uploads to the whole server: where they are decoded, and what hostile ones do to others."""

import io
import os
import signal
import struct
import sys
import time
import wave
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest

from tests.embedded.recordings import CODECS, converted
from tests.support.application import AUDIO
from tests.support.planted_secrets import PROVIDER_KEY
from tests.support.processes import send_signal
from tests.support.provider import Fault, Provider
from tests.support.server_process import ServerProcess, open_session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SPEECH = (AUDIO / "anna_01.wav").read_bytes()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(
        folder, OPENAI_API_KEY=PROVIDER_KEY, OPENAI_BASE_URL=provider.base_url, TTS_MODEL="tts-test"
    ) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess, provider: Provider) -> Iterator[httpx2.Client]:
    provider.reset()
    with server.client() as client:
        yield client


def speak(client: httpx2.Client, session_id: str, data: bytes, **more: Any) -> httpx2.Response:
    return client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("x.bin", data)},
        **more,
    )


def process_id(server: ServerProcess) -> int:
    assert server.process is not None
    return server.process.pid


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_server_has_no_ffmpeg_in_it_after_a_turn_in_each_format(
    client: httpx2.Client, server: ServerProcess
) -> None:
    assert children(process_id(server)) == [], "nothing was uploaded yet"

    for kind in CODECS:
        response = speak(client, open_session(client), converted("anna_01", kind).data)
        assert response.status_code == 200, response.text

    assert "numpy" in maps(process_id(server))  # so that a library would be seen
    assert not [line for line in maps(process_id(server)).splitlines() if "libav" in line]
    (worker,) = children(process_id(server))
    assert "libavcodec" in maps(worker)
    environment = Path(f"/proc/{worker}/environ").read_bytes()
    assert PROVIDER_KEY.encode() not in environment
    assert b"DATA_DIR" not in environment


@pytest.mark.parametrize("kind", CODECS)
def test_a_recording_is_exported_as_it_was_transcribed(
    client: httpx2.Client, provider: Provider, kind: str
) -> None:
    session_id = open_session(client)
    speak(client, session_id, converted("mike_01", kind).data)

    exported = client.get(f"/sessions/{session_id}/export", params={"audio": "true"}).json()

    recording = exported["audio"][0]["recording"]
    data = b64decode(recording["data"])
    assert recording["format"] == "wav"
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        assert file.getnframes() / 16_000 == pytest.approx(recording["duration_seconds"])
    (sent,) = provider.to("transcription")
    assert sent.body["file"]["bytes"] == data


def multipart(session_id: str, disposition: str, *headers: str) -> bytes:
    lines = [
        "--b", 'Content-Disposition: form-data; name="session_id"',
        "Content-Type: text/plain; charset=utf-8", "", session_id,
        "--b", f"Content-Disposition: form-data; {disposition}", *headers, "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + SPEECH + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("disposition", "headers"),
    [
        ('name="audio"', ()),
        ('name="audio"', ("Content-Type: audio/wav",)),
        ("name=audio", ("Content-Type: application/octet-stream",)),
        ('Name="audio"; filename=""', ()),
        ("name=\"audio\"; filename*=UTF-8''a.wav", ()),
        ('name="audio"', ("Content-Type: text/plain",)),
    ],
)
def test_a_recording_needs_no_file_name(
    client: httpx2.Client, disposition: str, headers: tuple[str, ...]
) -> None:
    response = client.post(
        "/messages/voice",
        content=multipart(open_session(client), disposition, *headers),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )

    assert response.status_code == 200, response.text


HUM_SECONDS = int(os.environ.get("HUM_SECONDS", "60"))


@cache
def hum(seconds: int) -> bytes:
    """Return Ogg Opus of a few kilobits a second in which nobody speaks."""
    time_seconds = np.arange(16_000 * 30) / 16_000
    waves = [9000 / k * np.sin(2 * np.pi * 50 * k * time_seconds) for k in range(1, 6)]
    samples = np.tile(np.sum(waves, axis=0).clip(-32768, 32767).astype(np.int16), seconds // 30)
    target = io.BytesIO()
    container: Any = av.open(target, "w", format="ogg")
    with container:
        options = {"b": "3000", "frame_duration": "60"}
        stream = container.add_stream("libopus", rate=16_000, layout="mono", options=options)
        resampler = av.AudioResampler(stream.codec_context.format, "mono", 16_000, 960)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return target.getvalue()


def key_of(client: httpx2.Client, name: str, **limits: object) -> dict[str, str]:
    made = client.post("/keys", json={"name": name, "scopes": ["turns:write"], **limits})
    return {"Authorization": f"Bearer {made.json()['key']}"}


def test_fifteen_long_hums_hold_up_nobody_else(client: httpx2.Client) -> None:
    upload = hum(HUM_SECONDS)
    hostile, innocent = key_of(client, "hostile"), key_of(client, "innocent")
    sessions = [open_session(client) for _ in range(16)]
    webm = converted("anna_01", "webm").data
    speak(client, sessions[15], webm, headers=innocent)
    alone = [timed(client, sessions[15], webm, innocent) for _ in range(3)]

    with ThreadPoolExecutor(15) as threads:
        begun = time.monotonic()
        attacks = [
            threads.submit(speak, client, sessions[number], upload, headers=hostile)
            for number in range(15)
        ]
        waits: list[float] = []
        while not all(attack.done() for attack in attacks) and len(waits) < 10:
            waits.append(timed(client, sessions[15], webm, innocent))
        answers = [attack.result() for attack in attacks]
        took = time.monotonic() - begun

    figures = f"alone {max(alone):.2f} s, beside hums {max(waits):.2f} s, all hums {took:.1f} s"
    assert {answer.json()["code"] for answer in answers} == {"no-speech"}
    assert len(waits) > 1
    # In the order of their arrival, the first would wait for all hums.
    assert max(waits) < 2 * max(alone) + took / 3, figures


def timed(client: httpx2.Client, session_id: str, data: bytes, headers: dict[str, str]) -> float:
    begun = time.monotonic()
    assert speak(client, session_id, data, headers=headers).status_code == 200
    return time.monotonic() - begun


def test_a_killed_worker_is_back_for_the_next_upload(
    client: httpx2.Client, server: ServerProcess
) -> None:
    session_id = open_session(client)
    ogg = converted("anna_01", "ogg").data
    assert speak(client, session_id, ogg).status_code == 200
    (worker,) = children(process_id(server))
    send_signal(worker, signal.SIGKILL)

    assert speak(client, session_id, ogg).status_code == 200
    assert worker not in children(process_id(server))


def test_a_stream_that_fails_in_the_middle_is_one_line_in_the_log(
    client: httpx2.Client, provider: Provider, server: ServerProcess
) -> None:
    provider.chat.text = " ".join(f"This is sentence number {n} of this answer." for n in range(99))
    provider.chat.token_delay_seconds = 0.01
    session_id = open_session(client)
    before = len(server.log())
    provider.fail(Fault.RESET_AT_TOKEN, "chat", times=9, at=300)

    with pytest.raises(httpx2.RemoteProtocolError):
        speak(client, session_id, SPEECH)

    lines = server.log()[before:].splitlines()
    assert "Traceback" not in server.log()[before:]
    (line,) = [line for line in lines if "failed while its audio was sent" in line]
    assert "upstream-incomplete" in line
    assert not [line for line in lines if "ASGI" in line]


def test_a_wav_of_another_size_than_it_says_is_sent_on_as_it_is_heard(
    client: httpx2.Client, provider: Provider
) -> None:
    lying = SPEECH[:40] + struct.pack("<I", 0xFFFFFFFF) + SPEECH[44:]

    assert speak(client, open_session(client), lying).status_code == 200

    (sent,) = provider.to("transcription")
    assert sent.body["file"]["bytes"] == SPEECH

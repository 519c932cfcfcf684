"""What the guard must not touch, and what it may cost."""

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import pytest

from app.services.audio.job import MAX_SECONDS, read_recording
from app.services.ports import AudioFormat
from tests.support.application import AUDIO
from tests.voice.bad_audio import Files, all_files, compressed_blocks, index_bombs
from tests.voice.sounds import (
    FILE_TYPE,
    RATE_HZ,
    SPEECH,
    element,
    encoded,
    full_box,
    mp4,
    samples_of,
    simple_block,
    wav,
    webm,
)
from tests.voice.upload_checks import answer, check_upload, one_event_loop, uploads

pytestmark = pytest.mark.anyio
__all__ = ["one_event_loop", "uploads"]

PCM = samples_of(SPEECH)
MEGABYTE = 1024 * 1024
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PLAYLISTS = {
    "M3U8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
    "M3U8 of a file": "#EXTM3U\n#EXTINF:9,\n{path}\n",
    "concat": "ffconcat version 1.0\nfile '{path}'\nfile '{url}'\n",
    "SDP": "v=0\no=- 0 0 IN IP4 {host}\ns=x\nc=IN IP4 {host}\nm=audio {port} RTP/AVP 0\n",
    "DASH": '<?xml version="1.0"?><MPD><Period><BaseURL>{url}</BaseURL></Period></MPD>',
    "PLS": "[playlist]\nFile1={url}\n",
    "ASX": '<asx><entry><ref href="{url}"/></entry></asx>',
    "XSPF": "<playlist><trackList><track><location>{url}</location></track></trackList></playlist>",
}


def disguised(playlist: bytes) -> Files:
    """Return the playlist as it is, and inside or behind what passes the sniffing."""
    samples = b"".join(
        [
            full_box(b"stts", struct.pack(">III", 1, 5, 1024)),
            full_box(b"stsc", struct.pack(">IIII", 1, 1, 5, 1)),
            full_box(b"stco", struct.pack(">II", 1, 44)),
            full_box(b"stsz", struct.pack(">II", 1024, 5)),
        ]
    )
    alias = bytes(10) + playlist
    return {
        "plain": playlist,
        "WAV": wav(playlist),
        "type of an MP4": FILE_TYPE + playlist,
        "MP4 with a URL for its data": mp4(samples, source=full_box(b"url ", playlist)),
        "MP4 with a path for its data": mp4(samples, source=full_box(b"alis", alias)),
        "linked WebM": webm(
            simple_block(playlist), extras=element("1549a966", element("3e83ab", playlist))
        ),
    }


async def test_file_that_points_elsewhere_opens_no_connection(tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(SPEECH)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        host, port = listener.getsockname()
        places = {
            "host": host,
            "port": port,
            "url": f"http://{host}:{port}/speech.wav",
            "path": tmp_path / "speech.wav",
        }
        for playlist in [*PLAYLISTS.values(), "{url}", "{path}"]:
            for name, data in disguised(playlist.format(**places).encode()).items():
                assert await answer(data) in {
                    "audio-unreadable",
                    "audio-empty",
                    "no-speech",
                }, name
        with pytest.raises(BlockingIOError):
            listener.accept()


PROGRAM = """
import os, sys
from pathlib import Path
from app.services.audio.job import read_recording

def peak_megabytes():
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmHWM:") + 1]) / 1000

warm, *paths = map(Path, sys.argv[1:])
assert "code" not in read_recording({}, warm.read_bytes())[0]
idle, descriptors = peak_megabytes(), len(os.listdir("/proc/self/fd"))
for path in paths:
    read_recording({}, path.read_bytes())
print(peak_megabytes() - idle, len(os.listdir("/proc/self/fd")) - descriptors)
"""


def inspect_in_a_process(folder: Path, temporary: Path) -> tuple[float, int]:
    """Inspect every file of `folder`; return megabytes above idle and descriptors left open."""
    speech = AUDIO / "mike_01.wav"
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, speech, *sorted(folder.iterdir())],
        stdout=subprocess.PIPE,
        check=True,
        cwd=temporary,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(AUDIO.parents[1])},
    )
    megabytes, descriptors = ran.stdout.split()
    return float(megabytes), int(descriptors)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An empty folder for the files to inspect, and one that must stay empty."""
    uploads, temporary = tmp_path / "uploads", tmp_path / "temporary"
    uploads.mkdir()
    temporary.mkdir()
    return uploads, temporary


@on_linux
async def test_bad_audio_leaves_no_file_and_no_descriptor_behind(
    folders: tuple[Path, Path],
) -> None:
    uploads, temporary = folders
    for index, (_, data) in enumerate(all_files()):
        (uploads / str(index)).write_bytes(data)

    _, descriptors = await anyio.to_thread.run_sync(inspect_in_a_process, *folders)

    assert descriptors == 0
    assert not list(temporary.iterdir())


@on_linux
@pytest.mark.parametrize("sound_format", [AudioFormat.WAV, AudioFormat.OGG, AudioFormat.MP3])
async def test_ten_minutes_take_at_most_64_megabytes(
    sound_format: AudioFormat, folders: tuple[Path, Path]
) -> None:
    times = MAX_SECONDS * RATE_HZ // len(PCM) - 8
    minutes = (
        wav(np.tile(PCM, times).tobytes())
        if sound_format is AudioFormat.WAV
        else encoded(PCM, sound_format) * times
    )
    assert (await check_upload(minutes)).duration_seconds > MAX_SECONDS * 0.9
    (folders[0] / "minutes").write_bytes(minutes)

    megabytes, _ = await anyio.to_thread.run_sync(inspect_in_a_process, *folders)

    assert megabytes <= 64


@on_linux
@pytest.mark.parametrize("make", [compressed_blocks, index_bombs], ids=lambda make: make.__name__)
async def test_bomb_takes_at_most_64_megabytes(
    make: Callable[[], Files], folders: tuple[Path, Path]
) -> None:
    for index, data in enumerate(make().values()):
        (folders[0] / str(index)).write_bytes(data)

    megabytes, _ = await anyio.to_thread.run_sync(inspect_in_a_process, *folders)

    assert megabytes <= 64


async def test_hours_in_25_megabytes_are_refused_in_two_seconds() -> None:
    packet = b"\x1b\x81\x00" + bytes(40)  # 60 ms of Opus
    data = webm(simple_block(packet) * (24 * MEGABYTE // 60))

    assert await answer(data) == "audio-too-long"

    begin = time.process_time()
    read_recording({}, data)
    assert time.process_time() - begin < 2

"""Measures the stages of voice turns on the embedded engine, with recordings in every format."""

import http.client
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import orjson

from bench.processes import Server, free_port
from bench.voice_uploads import CONTENT_TYPE, upload_body
from tests.embedded.recordings import converted

_AUDIO = Path(__file__).parent.parent / "tests/audio"
_KINDS = ("wav", "mp3", "m4a", "webm", "ogg", "flac")
_STAGES = ("stt_ms", "first_token_ms", "first_sentence_ms", "first_audio_ms", "total_ms")
_AGENT = {"name": "Ada", "system_prompt": "Answer in one short sentence.", "max_output_tokens": 60}


def embedded_rows(models: Path, folder: Path, model_set: str) -> list[list[str]]:
    """Send each recording in each format; return table rows of mean milliseconds per stage.

    Stages are measured from the acceptance of the turn. `models` is a folder with the weights,
    laid out as `DATA_DIR/models`.
    """
    folder.mkdir()
    (folder / "models").symlink_to(models.resolve())
    port = free_port()
    settings = {"DATA_DIR": str(folder), "PORT": str(port), "EMBEDDED_MODELS": model_set}
    head = ["format", "answered", *_STAGES, "speech in, s"]
    names = sorted(path.stem for path in _AUDIO.glob("*.wav"))
    with Server(["app.cli", "serve"], port, folder, settings):
        agent_id = _ask(port, "POST", "/agents", _AGENT)["id"]
        _wait_until_loaded(port, agent_id, converted(names[0], "wav").data)
        return [head, *(_row(port, agent_id, kind, names) for kind in _KINDS)]


def _row(port: int, agent_id: str, kind: str, names: Sequence[str]) -> list[str]:
    answers = [_turn(port, agent_id, converted(name, kind).data) for name in names]
    turns = [turn for turn in answers if turn]
    means = [f"{fmean(turn['timings'][stage] for turn in turns):.0f}" for stage in _STAGES]
    seconds = fmean(turn["speech_in_seconds"] for turn in turns)
    answered = f"{len(turns)} of {len(names)}"
    return [kind, answered, *means, f"{seconds:.1f}"]


def _wait_until_loaded(port: int, agent_id: str, recording: bytes) -> None:
    """Send a recording until it is answered, since the engine loads after the server's start."""
    for _ in range(60):
        if _turn(port, agent_id, recording):
            return
        time.sleep(1)


def _turn(port: int, agent_id: str, data: bytes) -> dict[str, Any] | None:
    """Send a recording; return its turn, or `None` if it was not answered with audio."""
    session_id = _ask(port, "POST", "/sessions", {"agent_id": agent_id})["id"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=180)
    headers = {"Content-Type": CONTENT_TYPE}
    connection.request("POST", "/messages/voice", upload_body(session_id, data), headers)
    response = connection.getresponse()
    sound = response.read()
    turn_id = response.headers.get("X-Turn-Id")
    connection.close()
    if response.status != http.HTTPStatus.OK or not sound:
        return None
    return _ask(port, "GET", f"/turns/{turn_id}")


def _ask(port: int, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = orjson.dumps(body) if body is not None else None
    connection.request(method, path, sent, {"Content-Type": "application/json"} if sent else {})
    read = orjson.loads(connection.getresponse().read())
    connection.close()
    return read

"""The worker process, which runs the models of the embedded engine.

Started as `python -m app.services.local_service.worker`, with frames on stdin and stdout (see
`protocol.py`). It ends when its stdin is closed, so it never outlives the server. A crash of native
code ends only this process.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

# Set before the libraries that read them are imported: spinning threads cost 3 to 8 times the CPU
# on busy cores, and onnxruntime sends telemetry by default.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from app.core.capabilities import Capability
from app.services.local_service.tasks import Cancelled, ModelQueue, Refused, Task, Urgency
from app.services.sandbox.frames import Fields, encode_frame, read_frame

if TYPE_CHECKING:
    from app.services.local_service.chat_model import ChatRunner
    from app.services.local_service.speech import SpeechRunner
    from app.services.local_service.transcription import TranscriptionRunner

REQUESTS_AT_ONCE = 32
SENTENCES_AHEAD = 2
PIECE_BYTES = 32 * 1024

Runner = TypeVar("Runner")


class FrameWriter:
    """Writes events to the server as complete frames; thread-safe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, fields: Fields, payload: bytes = b"") -> None:
        """Write one event; end the process if the server has closed the pipe."""
        frame = encode_frame(fields, payload)
        with self._lock:
            try:
                self._stream.write(frame)
                self._stream.flush()
            except OSError:
                os._exit(0)


class ModelLoader:
    """Loads the models in the background; each is a future of its runner."""

    def __init__(self, opening: Fields, outlet: FrameWriter) -> None:
        self._root = Path(opening["root"])
        self._threads = int(opening["threads"])
        self._names: dict[str, str] = opening["voices"]
        self._outlet = outlet
        self._queue = ModelQueue()
        """For what is heard and spoken; the chat model has its own."""
        self._parts = [Capability(part) for part in opening["parts"]]
        self.chat: Future[ChatRunner] = Future()
        self.transcription: Future[TranscriptionRunner] = Future()
        self.speech: Future[SpeechRunner] = Future()

    def load(self) -> None:
        """Load the requested models one after the other, and report each to the server."""
        self._load(Capability.STT, self.transcription, self._open_transcription)
        self._load(Capability.TTS, self.speech, self._open_speech)
        self._load(Capability.CHAT, self.chat, self._open_chat)

    def _load(self, part: Capability, future: Future[Runner], opener: Callable[[], Runner]) -> None:
        if part not in self._parts:
            future.set_exception(
                Refused(f"The embedded {part.value} model is not enabled on this server.")
            )
            return
        started = time.monotonic()
        try:
            runner = opener()
        except Exception as error:  # noqa: BLE001 - any failure disables this model
            future.set_exception(error)
            traceback.print_exc()
            self._outlet.send({"event": "broken", "part": part.value, "message": repr(error)})
        else:
            future.set_result(runner)
            seconds = round(time.monotonic() - started, 3)
            self._outlet.send({"event": "loaded", "part": part.value, "seconds": seconds})

    def _open_chat(self) -> "ChatRunner":
        from app.services.local_service.chat_model import ChatRunner

        model = next((self._root / "chat").glob("*.gguf"))
        return ChatRunner(model, threads=self._threads)

    def _open_transcription(self) -> "TranscriptionRunner":
        from app.services.local_service.transcription import TranscriptionRunner

        return TranscriptionRunner(self._root / "stt", threads=self._threads, queue=self._queue)

    def _open_speech(self) -> "SpeechRunner":
        from app.services.local_service.speech import SpeechRunner, open_voice

        folder = self._root / "tts"
        voice = open_voice(folder, threads=self._threads, names=self._names)
        return SpeechRunner(voice, self._queue)


class Worker:
    """Reads requests from the server and runs each in a thread."""

    def __init__(self, inlet: BinaryIO, outlet: FrameWriter) -> None:
        self._inlet = inlet
        self._outlet = outlet
        self._tasks: dict[int, Task] = {}
        self._pools = {
            part: ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix=part.value)
            for part in Capability
        }
        self._missing_voices: set[str] = set()

    def run(self) -> None:
        """Process requests until the server closes the pipe."""
        opening = read_frame(self._inlet)
        if opening is None:
            return
        self._models = ModelLoader(opening[0], self._outlet)
        threading.Thread(target=self._models.load, name="loader", daemon=True).start()
        while (frame := read_frame(self._inlet)) is not None:
            self._take(*frame)

    def _take(self, fields: Fields, payload: bytes) -> None:
        number = int(fields["id"])
        task = self._tasks.get(number)
        match fields["op"]:
            case "cancel":
                if task is not None:
                    task.cancel()
            case "more":
                if task is not None:
                    task.add_credit()
            case "chat":
                self._start(Capability.CHAT, number, lambda task: self._chat(task, number, fields))
            case "transcribe":
                self._start(
                    Capability.STT, number, lambda task: self._transcribe(task, fields, payload)
                )
            case "speak":
                self._start(Capability.TTS, number, lambda task: self._speak(task, number, fields))
            case _:
                self._outlet.send({"event": "failed", "id": number})

    def _start(self, part: Capability, number: int, work: Callable[[Task], Fields]) -> None:
        task = Task(credits=SENTENCES_AHEAD)
        self._tasks[number] = task
        self._pools[part].submit(self._finish, number, task, work)

    def _finish(self, number: int, task: Task, work: Callable[[Task], Fields]) -> None:
        """Run `work` and send its single last event."""
        try:
            task.check()
            end: Fields = {"event": "end", **work(task)}
        except Cancelled:
            end = {"event": "cancelled"}
        except Refused as error:
            end = {"event": "refused", "message": str(error)}
        except Exception:  # noqa: BLE001 - a failed request must not end the process or hang
            traceback.print_exc()
            end = {"event": "failed"}
        self._tasks.pop(number, None)
        self._outlet.send({**end, "id": number})

    def _chat(self, task: Task, number: int, fields: Fields) -> Fields:
        summary = self._models.chat.result().answer(
            task,
            fields["messages"],
            temperature=fields["temperature"],
            max_output_tokens=fields["max_output_tokens"],
            grammar=fields["grammar"],
            sampling=fields.get("sampling", {}),
            on_text=lambda text: self._outlet.send({"event": "text", "id": number, "text": text}),
        )
        if summary is None:
            return {"finish_reason": None}
        return {
            "finish_reason": summary.finish_reason,
            "prompt_tokens": summary.prompt_tokens,
            "cached_tokens": summary.cached_tokens,
            "completion_tokens": summary.completion_tokens,
        }

    def _transcribe(self, task: Task, fields: Fields, payload: bytes) -> Fields:
        result = self._models.transcription.result().transcribe(
            task,
            payload,
            fields["language"],
            Urgency(fields["urgency"]),
            prompt=fields.get("prompt", ""),
            has_times=fields.get("has_times", False),
        )
        return {"text": result.text, "language": result.language, "segments": result.segments}

    def _speak(self, task: Task, number: int, fields: Fields) -> Fields:
        speech = self._models.speech.result()
        voice = str(fields["voice"])
        chosen, is_exact = speech.resolve(voice)
        if not is_exact and voice not in self._missing_voices:
            self._missing_voices.add(voice)
            self._outlet.send({"event": "other_voice", "asked": voice, "chosen": chosen})
        speed, urgency = float(fields.get("speed", 1)), Urgency(fields["urgency"])
        for sound in speech.speak(task, str(fields["text"]), voice, speed, urgency):
            for start in range(0, len(sound), PIECE_BYTES):
                piece = sound[start : start + PIECE_BYTES]
                last = start + PIECE_BYTES >= len(sound)
                self._outlet.send({"event": "sound", "id": number, "last": last}, piece)
        return {}


def main() -> None:
    """Process requests on stdin, then exit without waiting for native threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of native code must not be mixed with frames
    try:
        Worker(sys.stdin.buffer, FrameWriter(frames)).run()
    except Exception:  # noqa: BLE001 - logged before the process ends below
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

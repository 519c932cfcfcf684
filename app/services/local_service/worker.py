"""The worker process: runs the models, and nothing of the server.

Started as `python -m app.services.local_service.worker` with frames on stdin and stdout (see
`protocol.py`). It ends when its stdin ends, so it never outlives the server. Native code that
crashes takes this process with it and no other.
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

# Before any import of a library that reads them: spinning threads cost a factor of 3 to 8 on
# busy cores, and onnxruntime sends telemetry unless told not to.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from app.services.local_service.protocol import Fields, Part, encode_frame, read_frame
from app.services.local_service.tasks import Cancelled, Refused, Task

if TYPE_CHECKING:
    from app.services.local_service.chat_model import ChatRunner
    from app.services.local_service.speech import SpeechRunner
    from app.services.local_service.transcription import TranscriptionRunner

REQUESTS_AT_ONCE = 32
SENTENCES_AHEAD = 2
PIECE_BYTES = 32 * 1024

Runner = TypeVar("Runner")


class Outlet:
    """Writes events to the server, one whole frame at a time, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, fields: Fields, payload: bytes = b"") -> None:
        """Write one event; ends the process where nobody reads any more."""
        frame = encode_frame(fields, payload)
        with self._lock:
            try:
                self._stream.write(frame)
                self._stream.flush()
            except OSError:
                os._exit(0)


class Models:
    """The runners, each loaded once by a thread of its own."""

    def __init__(self, opening: Fields, outlet: Outlet) -> None:
        self._root = Path(opening["root"])
        self._threads = int(opening["threads"])
        self._names: dict[str, str] = opening["voices"]
        self._outlet = outlet
        self._parts = [Part(part) for part in opening["parts"]]
        self.chat: Future[ChatRunner] = Future()
        self.transcription: Future[TranscriptionRunner] = Future()
        self.speech: Future[SpeechRunner] = Future()

    def load(self) -> None:
        """Load what was asked for, one after the other, and tell the server of each."""
        self._load(Part.STT, self.transcription, self._open_transcription)
        self._load(Part.TTS, self.speech, self._open_speech)
        self._load(Part.CHAT, self.chat, self._open_chat)

    def _load(self, part: Part, future: Future[Runner], opener: Callable[[], Runner]) -> None:
        if part not in self._parts:
            future.set_exception(Refused(f"The {part.value} part is not open."))
            return
        started = time.monotonic()
        try:
            runner = opener()
        except Exception as error:  # noqa: BLE001 - whatever a library raises, this part is out
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

        return TranscriptionRunner(self._root / "stt", threads=self._threads)

    def _open_speech(self) -> "SpeechRunner":
        from app.services.local_service.speech import SpeechRunner, open_voice

        folder = self._root / "tts"
        return SpeechRunner(open_voice(folder, threads=self._threads, names=self._names))


class Worker:
    """Takes requests from the server and runs each in a thread."""

    def __init__(self, inlet: BinaryIO, outlet: Outlet) -> None:
        self._inlet = inlet
        self._outlet = outlet
        self._tasks: dict[int, Task] = {}
        self._pools = {
            part: ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix=part.value)
            for part in Part
        }
        self._missing_voices: set[str] = set()

    def run(self) -> None:
        """Serve until the server closes the pipe."""
        opening = read_frame(self._inlet)
        if opening is None:
            return
        self._models = Models(opening[0], self._outlet)
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
                self._start(Part.CHAT, number, lambda task: self._chat(task, number, fields))
            case "transcribe":
                self._start(Part.STT, number, lambda task: self._transcribe(task, fields, payload))
            case "speak":
                self._start(Part.TTS, number, lambda task: self._speak(task, number, fields))
            case _:
                self._outlet.send({"event": "failed", "id": number})

    def _start(self, part: Part, number: int, work: Callable[[Task], Fields]) -> None:
        task = Task(credits=SENTENCES_AHEAD)
        self._tasks[number] = task
        self._pools[part].submit(self._finish, number, task, work)

    def _finish(self, number: int, task: Task, work: Callable[[Task], Fields]) -> None:
        """Run `work` and send exactly one last event for it."""
        try:
            task.check()
            end: Fields = {"event": "end", **work(task)}
        except Cancelled:
            end = {"event": "cancelled"}
        except Refused as error:
            end = {"event": "refused", "message": str(error)}
        except Exception:  # noqa: BLE001 - a request must never end the process or hang
            traceback.print_exc()
            end = {"event": "failed"}
        self._tasks.pop(number, None)
        self._outlet.send({**end, "id": number})

    def _chat(self, task: Task, number: int, fields: Fields) -> Fields:
        answered = self._models.chat.result().answer(
            task,
            fields["messages"],
            temperature=fields["temperature"],
            max_output_tokens=fields["max_output_tokens"],
            on_text=lambda text: self._outlet.send({"event": "text", "id": number, "text": text}),
        )
        if answered is None:
            return {"finish_reason": None}
        return {
            "finish_reason": answered.finish_reason,
            "prompt_tokens": answered.prompt_tokens,
            "cached_tokens": answered.cached_tokens,
            "completion_tokens": answered.completion_tokens,
        }

    def _transcribe(self, task: Task, fields: Fields, payload: bytes) -> Fields:
        heard = self._models.transcription.result().transcribe(task, payload, fields["language"])
        return {"text": heard.text, "language": heard.language}

    def _speak(self, task: Task, number: int, fields: Fields) -> Fields:
        speech = self._models.speech.result()
        voice = str(fields["voice"])
        chosen, is_exact = speech.resolve(voice)
        if not is_exact and voice not in self._missing_voices:
            self._missing_voices.add(voice)
            self._outlet.send({"event": "other_voice", "asked": voice, "chosen": chosen})
        for sound in speech.speak(task, str(fields["text"]), voice):
            for start in range(0, len(sound), PIECE_BYTES):
                piece = sound[start : start + PIECE_BYTES]
                last = start + PIECE_BYTES >= len(sound)
                self._outlet.send({"event": "sound", "id": number, "last": last}, piece)
        return {}


def main() -> None:
    """Keep the pipe for frames alone, serve, and leave without waiting for native threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not land between frames
    try:
        Worker(sys.stdin.buffer, Outlet(frames)).run()
    except Exception:  # noqa: BLE001 - the last words of a process that ends below
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

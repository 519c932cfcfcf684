"""The worker process: gives the jobs of each caller to a process of their own; parses nothing.

Started as `python -m app.services.sandbox.worker` with frames on stdin and stdout (`frames.py`).
It imports once what jobs need, and forks. It ends when its stdin ends, and its processes with it.
Where forking is not safe (anywhere but on Linux) jobs run in this process, one at a time.
"""

import gc
import os
import selectors
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

from app.services.sandbox.frames import Fields, encode_frame
from app.services.sandbox.jobs import function_named, output_of, read_frame, write_all
from app.services.sandbox.limits import CAN_FORK, JobLimits, die_with_parent

if TYPE_CHECKING:
    from app.services.sandbox.job_process import JobProcess

_SPARE_AFTER_SECONDS = 0.02
"""A process for the next caller is made when nothing else is to be done."""
_IDLE_SECONDS = 10.0
_IDLE_PROCESSES = 2
"""Kept for their callers' next jobs, besides the spare one."""


class JobServer:
    """Takes jobs from the server, runs them, and hands their output back unread."""

    def __init__(self, inlet: int, outlet: int) -> None:
        self._inlet = inlet
        self._outlet = outlet
        self._selector = selectors.DefaultSelector()
        self._processes: dict[int, JobProcess] = {}
        """By process id."""
        self._limits = JobLimits()
        self._warm_up: list[str] = []

    def run(self) -> None:
        """Serve until the server closes the pipe."""
        opening = read_frame(self._inlet)
        if opening is None:
            return
        fields, _ = opening
        self._limits = JobLimits.from_fields(fields["limits"])
        self._warm_up = fields["warm_up"]
        for name in self._warm_up:
            function_named(name)()
        gc.collect()
        gc.freeze()  # or a process' collector would copy every page that it looks at
        self._send({"event": "ready"})
        if not CAN_FORK:
            self._serve_here()
            return
        self._selector.register(self._inlet, selectors.EVENT_READ)
        while self._serve():
            pass

    def _serve(self) -> bool:
        """Do what is to be done; `False` once the server has closed the pipe."""
        events = self._selector.select(self._patience_seconds())
        if not events:
            self._tidy()
        for key, mask in events:
            if key.fd == self._inlet:
                if not self._take():
                    return False
            elif key.data.pid in self._processes:  # it may have ended a moment ago
                if mask & selectors.EVENT_WRITE and not key.data.send():
                    self._selector.unregister(key.data.inlet)
                if mask & selectors.EVENT_READ:
                    self._read(key.data)
        return True

    def _patience_seconds(self) -> float | None:
        if self._idle("") is None:
            return _SPARE_AFTER_SECONDS
        return _IDLE_SECONDS if len(self._processes) > 1 else None

    def _tidy(self) -> None:
        """Make the spare process, and end those that nobody has used for a while."""
        if self._idle("") is None:
            self._fork()
        oldest = time.monotonic() - _IDLE_SECONDS
        for process in list(self._processes.values()):
            if process.job is None and process.caller and process.idle_since < oldest:
                self._end(process)

    def _take(self) -> bool:
        frame = read_frame(self._inlet)
        if frame is None:
            return False
        fields, payload = frame
        number = int(fields["id"])
        if fields["op"] == "cancel":
            for process in list(self._processes.values()):
                if process.job == number:
                    self._end(process)
            return True
        caller = str(fields["caller"])
        process = self._idle(caller) or self._idle("") or self._fork()
        if process is None:
            self._send({"event": "end", "id": number, "reason": "no process", "cpu_seconds": 0})
            return True
        process.give(number, caller, encode_frame(fields, payload))
        if process.send():
            self._selector.register(process.inlet, selectors.EVENT_WRITE, process)
        return True

    def _idle(self, caller: str) -> "JobProcess | None":
        """Return a process without a job that has read nobody's files but the caller's."""
        for process in self._processes.values():
            if process.job is None and process.caller == caller:
                return process
        return None

    def _fork(self) -> "JobProcess | None":
        from app.services.sandbox.job_process import JobProcess

        try:
            process = JobProcess.fork(self._warm_up, self._limits)
        except OSError:
            traceback.print_exc()
            return None
        self._processes[process.pid] = process
        self._selector.register(process.outlet, selectors.EVENT_READ, process)
        return process

    def _read(self, process: "JobProcess") -> None:
        if not process.read(self._limits.output_bytes):
            self._end(process)
            return
        number = process.job
        if finished := process.finish():
            cpu_seconds, output = finished
            end: Fields = {"event": "end", "id": number, "cpu_seconds": cpu_seconds}
            self._send(end, output)
            used = [each for each in self._processes.values() if each.job is None and each.caller]
            if process.is_retired:
                self._end(process)
            elif len(used) > _IDLE_PROCESSES:
                self._end(min(used, key=lambda each: each.idle_since))

    def _end(self, process: "JobProcess") -> None:
        """End a process, and say so to who waits for its job."""
        del self._processes[process.pid]
        for pipe in (process.inlet, process.outlet):
            if pipe in self._selector.get_map():
                self._selector.unregister(pipe)
        number = process.job
        cpu_seconds, reason = process.end()
        if number is not None:
            end = {"event": "end", "id": number, "reason": reason, "cpu_seconds": cpu_seconds}
            self._send(end)

    def _serve_here(self) -> None:
        while frame := read_frame(self._inlet):
            fields, payload = frame
            if fields["op"] == "run":
                began = time.process_time()
                output = output_of(fields, payload)
                used = time.process_time() - began
                self._send({"event": "end", "id": fields["id"], "cpu_seconds": used}, output)

    def _send(self, fields: Fields, payload: bytes | bytearray = b"") -> None:
        """Write one frame; ends the process where nobody reads any more."""
        try:
            write_all(self._outlet, encode_frame(fields, payload))
        except OSError:
            os._exit(0)


def main() -> None:
    """Keep the pipes for frames alone, and serve."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # likewise: it closes the pipe once it is done
    outlet = os.dup(1)
    os.dup2(2, 1)
    try:
        JobServer(os.dup(0), outlet).run()
    except Exception:  # noqa: BLE001  # the last words of a process that ends below
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(0)  # its processes end with it


if __name__ == "__main__":
    main()

"""The chat model inside the worker: llama.cpp's server, called in-process.

The library always opens a listening socket, so it gets a Unix socket in a folder that only this
user may access, and a random API key. No TCP port is opened, except on Windows, where the library
has no Unix sockets and uses a loopback port with that key.
"""

import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.services.local_service.tasks import Refused, Task

CONTEXT_TOKENS = 4096
SLOTS = 2
BATCH_TOKENS = 128
"""Small, because a request can be cancelled only between the batches of its prompt."""
DEFAULT_OUTPUT_TOKENS = 1024
DEFAULT_TEMPERATURE = 0.3
"""Models this small lose coherence at the usual 0.8."""
LOOP_PENALTY = {"dry_multiplier": 0.8, "dry_allowed_length": 4, "dry_penalty_last_n": 256}
"""Prevents the loops of small models; a plain repeat penalty would suppress names of the prompt.

JSON repeats its names, so none is sent with a grammar.
"""
LOG_NOTHING = -1
PROMPT_CACHE_MIB = 128


@dataclass(frozen=True, slots=True)
class AnswerSummary:
    """How an answer ended, with the field names and values of the OpenAI API."""

    finish_reason: str
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None


class ChatRunner:
    """Runs the chat model; answers up to `SLOTS` conversations at once."""

    def __init__(self, model: Path, *, threads: int) -> None:
        import xllamacpp

        library: Any = xllamacpp
        params = library.CommonParams()
        params.model.path = str(model)
        params.n_ctx = CONTEXT_TOKENS * SLOTS
        params.n_parallel = SLOTS
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.use_jinja = True
        params.prefill_assistant = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib = PROMPT_CACHE_MIB
        params.verbosity = LOG_NOTHING
        params.ui = params.endpoint_slots = params.endpoint_props = False
        params.offline = True
        params.api_keys = [secrets.token_hex(32)]
        with tempfile.TemporaryDirectory(prefix="chat-") as folder:
            if sys.platform != "win32":
                params.hostnames = [os.path.join(folder, "listener.sock")]  # noqa: PTH118 - a str
            self._server = library.Server(params)
        self._slots = threading.Semaphore(SLOTS)

    def answer(  # noqa: PLR0913  # one per field of a request
        self,
        task: Task,
        messages: Sequence[dict[str, str]],
        *,
        temperature: float | None,
        max_output_tokens: int | None,
        grammar: str | None,
        sampling: dict[str, Any],
        on_text: Callable[[str], None],
    ) -> AnswerSummary | None:
        """Answer `messages`; call `on_text` with each delta. `None` without a finish reason.

        With a `grammar` the answer is text that it allows. `sampling` are further fields of the
        request, with the names of the OpenAI API.

        Raises `Refused` for a prompt that exceeds the context window, and `Cancelled`.
        """
        request: dict[str, Any] = {
            "messages": _alternating(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            "temperature": DEFAULT_TEMPERATURE if temperature is None else temperature,
            **({"grammar": grammar} if grammar else LOOP_PENALTY),
            "max_tokens": max_output_tokens or DEFAULT_OUTPUT_TOKENS,
            **sampling,
        }
        collector = _AnswerCollector(task, on_text)
        with task.holding(self._slots):
            self._server.handle_chat_completions(request, collector)
        task.check()
        if collector.error is not None:
            raise collector.error
        return collector.summary()


class _AnswerCollector:
    """Receives the chunks of one answer; a call returns True to stop the library."""

    def __init__(self, task: Task, on_text: Callable[[str], None]) -> None:
        self._task = task
        self._on_text = on_text
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] = {}
        self.error: Exception | None = None

    def __call__(self, chunk: Any) -> bool:  # noqa: ANN401 - the library's own loose JSON
        try:
            chunks = cast("list[dict[str, Any]]", chunk if isinstance(chunk, list) else [chunk])
            for item in chunks:
                self._take(item)
        except Exception as error:  # noqa: BLE001 - an exception must not unwind through native code
            self.error = error
        return self._task.is_cancelled or self.error is not None

    def _take(self, chunk: dict[str, Any]) -> None:
        if error := chunk.get("error"):
            raise _translated(error)
        self._usage = chunk.get("usage") or self._usage
        choices: list[dict[str, Any]] = chunk.get("choices") or []
        for choice in choices:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            delta: dict[str, str | None] = choice.get("delta") or {}
            if text := delta.get("content"):
                self._on_text(text)

    def summary(self) -> AnswerSummary | None:
        if self._finish_reason is None:
            return None
        details: dict[str, int] = self._usage.get("prompt_tokens_details") or {}
        return AnswerSummary(
            finish_reason=self._finish_reason,
            prompt_tokens=self._usage.get("prompt_tokens"),
            cached_tokens=details.get("cached_tokens"),
            completion_tokens=self._usage.get("completion_tokens"),
        )


def _translated(error: dict[str, Any]) -> Exception:
    if error.get("type") == "exceed_context_size_error":
        return Refused(
            f"The conversation has {error.get('n_prompt_tokens')} tokens, but the embedded model "
            f"takes {CONTEXT_TOKENS}: shorten it or start a new session."
        )
    if str(error.get("code")).startswith("4"):
        return Refused("The embedded model refused this conversation: start a new session.")
    return RuntimeError(f"llama.cpp answered {error.get('code')}: {error.get('message')}")


def _alternating(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Join adjacent messages of one role: the models' chat templates require alternating roles."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    if not joined:
        raise Refused("The conversation is empty: send a message.")
    return joined

"""Implement the ports of `ports.py` with the embedded engine."""

from collections.abc import AsyncGenerator

from app.core.capabilities import Capability
from app.services.local_service.chat_model import CONTEXT_TOKENS
from app.services.local_service.engine import LocalEngine
from app.services.local_service.grammar import json_grammar
from app.services.ports import (
    STANDARD_VOICES,
    ChatFinished,
    ChatRequest,
    FinishReason,
    OnWords,
    Recording,
    TextDelta,
    Transcript,
    UpstreamIncomplete,
)

MAX_SPOKEN_CHARACTERS = 4096
_SYSTEM = "system"


class LocalChatModel:
    """The `ChatModel` of the embedded engine. The model's name in a request is ignored."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    @property
    def context_tokens(self) -> int:
        """Size of the context window in tokens, prompt and answer together."""
        return CONTEXT_TOKENS

    async def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        """Stream the answer to `request`: text deltas, then exactly one `ChatFinished`."""
        messages = [
            {"role": message.role, "content": _clean(message.content)}
            for message in request.messages
        ]
        response_format = request.response_format
        if response_format:
            # The model's template joins neighbours of one role.
            instruction = {"role": _SYSTEM, "content": _clean(response_format.instruction)}
            is_first = not messages or messages[0]["role"] != _SYSTEM
            messages.insert(0 if is_first else 1, instruction)
        fields = {
            "op": "chat",
            "messages": messages,
            "temperature": request.temperature,
            "max_output_tokens": request.max_output_tokens,
            "grammar": json_grammar(response_format.schema) if response_format else None,
        }
        link = await self._engine.link(Capability.CHAT)
        async with link.exchange(fields) as exchange:
            while True:
                event, _ = await exchange.next_event()
                if event["event"] == "end":
                    break
                yield TextDelta(str(event["text"]))
        if event["finish_reason"] not in list(FinishReason):
            raise UpstreamIncomplete(
                "The embedded model did not finish its answer: send the message again."
            )
        yield ChatFinished(
            finish_reason=FinishReason(event["finish_reason"]),
            model=self._engine.model_set.chat_name,
            prompt_tokens=event["prompt_tokens"],
            cached_tokens=event["cached_tokens"],
            completion_tokens=event["completion_tokens"],
        )


class LocalTranscriber:
    """The `Transcriber` of the embedded engine."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        on_words: OnWords | None = None,  # noqa: ARG002  # does not stream
    ) -> Transcript:
        """Transcribe `recording`. An English-only model ignores `language`."""
        fields = {"op": "transcribe", "language": language}
        link = await self._engine.link(Capability.STT)
        async with link.exchange(fields, recording.data) as exchange:
            event, _ = await exchange.next_event()
        return Transcript(str(event["text"]), event["language"])


class LocalSpeaker:
    """The `Speaker` of the embedded engine; it synthesizes English."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of the PCM that `speak` yields, in Hz."""
        return self._engine.model_set.speech_rate_hz

    @property
    def max_characters(self) -> int:
        """The longest text, in characters, that one call of `speak` accepts."""
        return MAX_SPOKEN_CHARACTERS

    @property
    def voices(self) -> frozenset[str]:
        """The voices of the set of models, and the standard names."""
        return STANDARD_VOICES | self._engine.model_set.voice_names

    async def speak(self, text: str, *, voice: str) -> AsyncGenerator[bytes]:
        """Synthesize `text` sentence by sentence; yield signed 16-bit little-endian mono PCM.

        At most two sentences are synthesized ahead of the caller. Characters that cannot be
        pronounced in English are omitted; if none remain, the result is 0.2 s of silence.
        """
        link = await self._engine.link(Capability.TTS)
        fields = {"op": "speak", "text": _clean(text), "voice": voice}
        async with link.exchange(fields) as exchange:
            while True:
                event, sound = await exchange.next_event()
                if event["event"] == "end":
                    return
                yield sound
                if event["last"]:
                    exchange.grant_credit()


def _clean(text: str) -> str:
    """Replace what UTF-8 cannot encode (lone surrogates): native code must not receive it."""
    return text.encode(errors="replace").decode()

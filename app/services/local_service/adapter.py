"""The embedded engine behind the ports of `ports.py`."""

from collections.abc import AsyncGenerator

from app.services.local_service.chat_model import CONTEXT_TOKENS
from app.services.local_service.engine import LocalEngine
from app.services.local_service.protocol import Part
from app.services.ports import (
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


class LocalChatModel:
    """A `ChatModel` on the embedded engine. The model's name in a request is ignored."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    @property
    def context_tokens(self) -> int:
        """How many tokens prompt and answer may have together."""
        return CONTEXT_TOKENS

    async def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        """Answer `request`: text deltas, then exactly one `ChatFinished`."""
        messages = [
            {"role": message.role, "content": _clean(message.content)}
            for message in request.messages
        ]
        fields = {
            "op": "chat",
            "messages": messages,
            "temperature": request.temperature,
            "max_output_tokens": request.max_output_tokens,
        }
        link = await self._engine.link(Part.CHAT)
        async with link.exchange(fields) as exchange:
            while True:
                event, _ = await exchange.next_event()
                if event["event"] == "end":
                    break
                yield TextDelta(str(event["text"]))
        if event["finish_reason"] not in list(FinishReason):
            raise UpstreamIncomplete("The embedded model did not finish its answer.")
        yield ChatFinished(
            finish_reason=FinishReason(event["finish_reason"]),
            model=self._engine.model_set.chat_name,
            prompt_tokens=event["prompt_tokens"],
            cached_tokens=event["cached_tokens"],
            completion_tokens=event["completion_tokens"],
        )


class LocalTranscriber:
    """A `Transcriber` on the embedded engine."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        on_words: OnWords | None = None,  # noqa: ARG002  # it does not stream
    ) -> Transcript:
        """Write down `recording`. A model that knows English alone ignores `language`."""
        fields = {"op": "transcribe", "language": language}
        link = await self._engine.link(Part.STT)
        async with link.exchange(fields, recording.data) as exchange:
            event, _ = await exchange.next_event()
        return Transcript(str(event["text"]), event["language"])


class LocalSpeaker:
    """A `Speaker` on the embedded engine; it reads English."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    @property
    def sample_rate_hz(self) -> int:
        """Samples per second of what `speak` yields."""
        return self._engine.model_set.speech_rate_hz

    @property
    def max_characters(self) -> int:
        """The longest text that one call of `speak` takes."""
        return MAX_SPOKEN_CHARACTERS

    async def speak(self, text: str, *, voice: str) -> AsyncGenerator[bytes]:
        """Read `text` aloud, sentence by sentence.

        At most two sentences are made ahead of the caller. What English has no sounds for is
        left out; where nothing remains, it is a moment of silence.
        """
        link = await self._engine.link(Part.TTS)
        fields = {"op": "speak", "text": _clean(text), "voice": voice}
        async with link.exchange(fields) as exchange:
            while True:
                event, sound = await exchange.next_event()
                if event["event"] == "end":
                    return
                yield sound
                if event["last"]:
                    exchange.ask_for_more()


def _clean(text: str) -> str:
    """Return `text` without what is no text in UTF-8: native code must not meet it."""
    return text.encode(errors="replace").decode()

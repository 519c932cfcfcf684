"""Implement the ports of `ports.py` with the embedded engine."""

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from app.core.capabilities import Capability
from app.services.local_service.chat_model import CONTEXT_TOKENS
from app.services.local_service.engine import LocalEngine
from app.services.local_service.grammar import json_grammar
from app.services.local_service.tasks import Urgency
from app.services.local_service.tool_choice import (
    CHOICE_TOKENS,
    Line,
    chosen_call,
    plain_lines,
    question_of,
    tool_choice,
)
from app.services.ports import (
    STANDARD_VOICES,
    ChatFinished,
    ChatOptions,
    ChatRequest,
    FinishReason,
    OnWords,
    ProviderRejected,
    Recording,
    TextDelta,
    ToolCallDelta,
    Transcript,
    UpstreamIncomplete,
)
from app.services.sandbox.frames import Fields
from app.services.transcript_times import NO_TIMES, TimedText, TimeUnit

MAX_SPOKEN_CHARACTERS = 4096
_SAMPLING_FIELDS = ("top_p", "stop", "presence_penalty", "frequency_penalty")
_SYSTEM = "system"


class LocalChatModel:
    """The `ChatModel` of the embedded engine. The model's name in a request is ignored."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    @property
    def context_tokens(self) -> int:
        """Size of the context window in tokens, prompt and answer together."""
        return CONTEXT_TOKENS

    async def stream(
        self, request: ChatRequest
    ) -> AsyncGenerator[TextDelta | ToolCallDelta | ChatFinished]:
        """Stream the answer to `request`: text deltas or one call, then one `ChatFinished`.

        Where there are tools, the model first chooses one of them, or none.
        """
        options = request.options or ChatOptions()
        if options.tool_choice:
            raise ProviderRejected("The embedded model cannot be made to call a tool.")
        choice_end: ChatFinished | None = None
        question = question_of(request.messages)
        if request.tools and request.may_call_tools and question is not None:
            choice = tool_choice(request.tools, question)
            choice_pieces: list[str] = []
            choice_fields = _fields(choice.messages, 0.0, CHOICE_TOKENS, choice.grammar)
            async for item in self._answer(choice_fields):
                if isinstance(item, TextDelta):
                    choice_pieces.append(item.text)
                else:
                    choice_end = item
            if choice_end and (call := chosen_call("".join(choice_pieces))):
                yield ToolCallDelta(0, f"call_{uuid4().hex}", *call)
                yield replace(choice_end, finish_reason=FinishReason.TOOL_CALLS)
                return
        messages, grammar = plain_lines(request.messages), None
        if request.response_format:
            # The model's template joins neighbours of one role.
            instruction = {"role": _SYSTEM, "content": request.response_format.instruction}
            has_system = bool(messages) and messages[0]["role"] == _SYSTEM
            messages.insert(int(has_system), instruction)
            grammar = json_grammar(request.response_format.schema)
        fields = _fields(messages, request.temperature, request.max_output_tokens, grammar)
        fields["sampling"] = _sampling(options)
        async for item in self._answer(fields):
            if isinstance(item, ChatFinished) and choice_end:
                yield _sum(item, choice_end)
            else:
                yield item

    async def _answer(self, fields: Fields) -> AsyncGenerator[TextDelta | ChatFinished]:
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


def _fields(
    messages: list[Line],
    temperature: float | None,
    max_output_tokens: int | None,
    grammar: str | None,
) -> Fields:
    return {
        "op": "chat",
        "messages": [line | {"content": _clean(line["content"])} for line in messages],
        "temperature": temperature,
        "max_output_tokens": max_output_tokens,
        "grammar": grammar,
    }


def _sum(answer: ChatFinished, choice: ChatFinished) -> ChatFinished:
    """Return the end of an answer with the tokens of both."""
    return replace(
        answer,
        prompt_tokens=_added(answer.prompt_tokens, choice.prompt_tokens),
        cached_tokens=_added(answer.cached_tokens, choice.cached_tokens),
        completion_tokens=_added(answer.completion_tokens, choice.completion_tokens),
    )


def _added(count: int | None, other: int | None) -> int | None:
    return None if count is None or other is None else count + other


class LocalTranscriber:
    """The `Transcriber` of the embedded engine."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    @property
    def time_units(self) -> frozenset[TimeUnit]:
        """Whisper writes times between its segments."""
        return frozenset((TimeUnit.SEGMENT,))

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        prompt: str | None = None,
        times: frozenset[TimeUnit] = NO_TIMES,
        on_words: OnWords | None = None,  # noqa: ARG002  # does not stream
    ) -> Transcript:
        """Transcribe `recording`. An English-only model ignores `language`."""
        is_urgent = recording.is_urgent
        urgency = Urgency.ENDED_SPEECH if is_urgent else Urgency.EARLY_TRANSCRIPTION
        fields = {
            "op": "transcribe",
            "language": language,
            "prompt": _clean(prompt or ""),
            "has_times": TimeUnit.SEGMENT in times,
            "urgency": urgency.value,
        }
        link = await self._engine.link(Capability.STT)
        async with link.exchange(fields, recording.data) as exchange:
            event, _ = await exchange.next_event()
        segments = tuple(TimedText(str(text), start, end) for text, start, end in event["segments"])
        return Transcript(str(event["text"]), event["language"], segments)


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

    @property
    def has_speeds(self) -> bool:
        """Both models of speech take a speed."""
        return True

    async def speak(
        self, text: str, *, voice: str, speed: float = 1, is_urgent: bool = True
    ) -> AsyncGenerator[bytes]:
        """Synthesize `text` sentence by sentence; yield signed 16-bit little-endian mono PCM.

        At most two sentences are synthesized ahead of the caller. Characters that cannot be
        pronounced in English are omitted; if none remain, the result is 0.2 s of silence.
        """
        link = await self._engine.link(Capability.TTS)
        urgency = Urgency.FIRST_SENTENCE if is_urgent else Urgency.NEXT_SENTENCE
        fields = {
            "op": "speak",
            "text": _clean(text),
            "voice": voice,
            "speed": speed,
            "urgency": urgency.value,
        }
        async with link.exchange(fields) as exchange:
            while True:
                event, sound = await exchange.next_event()
                if event["event"] == "end":
                    return
                yield sound
                if event["last"]:
                    exchange.grant_credit()


def _sampling(options: ChatOptions) -> dict[str, Any]:
    """Return what the library takes beside the temperature; it knows no seed and no bias."""
    fields = {name: getattr(options, name) for name in _SAMPLING_FIELDS}
    return {name: value for name, value in fields.items() if value is not None}


def _clean(text: str) -> str:
    """Replace what UTF-8 cannot encode (lone surrogates): native code must not receive it."""
    return text.encode(errors="replace").decode()

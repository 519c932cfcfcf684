"""Ask the model until it answers without calling tools: prompt, answer, calls, and again."""

from collections.abc import Callable, Sequence
from contextlib import aclosing

from app.core.database import Database
from app.core.database.transactions import TransactionScript
from app.core.value_objects import value_object
from app.models import new_id
from app.services.ports import (
    ChatModel,
    ChatRequest,
    FinishReason,
    PromptLine,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallsUnsupported,
    UpstreamIncomplete,
)
from app.services.tool_ports import AgentTools, ToolRunner
from app.services.turns import receipts
from app.services.turns.context.attachments import PromptFiles
from app.services.turns.context.prompt import build_prompt, require_room
from app.services.turns.events import StepStarted, ToolCallArguments
from app.services.turns.execution.event_log import storable
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.tool_execution import StepCalls
from app.services.turns.parts import PARAGRAPH, step_lines
from app.services.turns.records import Usage
from app.services.turns.steps import Call
from app.services.turns.storage import ledger
from app.services.turns.voice_port import VoiceStagesFactory
from app.services.usage import CHARACTERS_PER_TOKEN, PriceTable, Reservation

_MOST_ARGUMENT_CHARACTERS = 256 << 10
_MOST_NAME_CHARACTERS = 64
_MOST_CALLS_OF_AN_ANSWER = 128


@value_object(frozen=True, slots=True)
class TurnRuntime:
    """What turns are run with."""

    database: Database
    chat_model: ChatModel
    voices: VoiceStagesFactory | None
    """Creates the stages of a voice turn that another server or process accepted."""
    tool_runner: ToolRunner | None
    tariff: PriceTable
    files: PromptFiles | None = None


OnDelta = Callable[[str], None]


async def answer(live: LiveTurn, runtime: TurnRuntime, on_delta: OnDelta | None = None) -> None:
    """Stream the model's answer into `live`, and run the tools that it calls.

    `on_delta` is called with each piece of text. Raises `ActionsPending` where the turn waits for
    somebody; `ProviderError`, `MessageTooLong`, `BudgetExhausted`, `UnknownToolOutcome`.
    """
    agent_tools = live.record.persona.tools
    if agent_tools is None:
        await _ask(live, runtime, None, on_delta)
        return
    progress = live.progress
    calls = StepCalls(live, agent_tools, runtime.database, runtime.tool_runner, runtime.files)
    if progress.steps:
        if on_delta and progress.text:
            on_delta(live.text)
        await calls.run(progress.steps[-1])
    while True:
        if progress.steps:
            live.log.emit(StepStarted(len(progress.steps) + 1))
        await _ask(live, runtime, agent_tools, on_delta)
        if not progress.calls:
            return
        step = receipts.close_step(progress)
        await calls.check(step)
        await calls.run(step)


async def _ask(
    live: LiveTurn,
    runtime: TurnRuntime,
    agent_tools: AgentTools | None,
    on_delta: OnDelta | None,
) -> None:
    """Stream one answer of the model into `live`."""
    record, progress, persona = live.record, live.progress, live.record.persona
    chat_model = runtime.chat_model
    window = require_room(persona, chat_model.context_tokens, record.history[-1])
    messages: Sequence[PromptLine] = build_prompt(
        persona.system_prompt,
        record.history,
        context_tokens=window.context_tokens,
        output_tokens=window.output_tokens,
    )
    may_call = agent_tools is not None and _may_call(live, agent_tools)
    if progress.steps:
        messages = [*messages, *_lines_of_steps(live)]
    if runtime.files:
        messages = await runtime.files.load(record.workspace_id, persona, messages)
    if progress.steps:
        await _reserve(live, runtime, messages)
    request = ChatRequest(
        messages=messages,
        model=persona.model,
        temperature=persona.temperature,
        max_output_tokens=window.output_tokens,
        tools=agent_tools.definitions if agent_tools else (),
        may_call_tools=may_call,
    )
    progress.prompt, progress.model = messages, persona.model
    progress.output_tokens_limit = window.output_tokens
    await _stream(live, chat_model, request, on_delta)
    if not progress.calls and len(progress.text) == progress.step_text_start:
        if progress.finish_reason == FinishReason.TOOL_CALLS and agent_tools is None:
            raise ToolCallsUnsupported("The model asked for tool calls instead of answering.")
        raise UpstreamIncomplete("The AI provider's answer was empty.")


async def _stream(
    live: LiveTurn, chat_model: ChatModel, request: ChatRequest, on_delta: OnDelta | None
) -> None:
    progress = live.progress
    room_characters = (request.max_output_tokens or 0) * CHARACTERS_PER_TOKEN
    async with aclosing(chat_model.stream(request)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, TextDelta):
                if not progress.text:
                    live.mark("first_token_ms")
                elif len(progress.text) == progress.step_text_start:
                    _begin_paragraph(live, on_delta)
                delta = chunk.text[:room_characters]
                room_characters -= len(chunk.text)
                live.append_text(delta)
                if on_delta:
                    on_delta(delta)
                if room_characters <= 0:  # it ignores its limit; leaving ends the request
                    progress.finish_reason = FinishReason.LENGTH.value
                    break
            elif isinstance(chunk, ReasoningDelta):
                live.append_reasoning(chunk.text)
            elif isinstance(chunk, ToolCallDelta):
                if request.tools and request.may_call_tools:
                    _take_call(live, chunk)
            else:
                progress.finish_reason = chunk.finish_reason.value
                progress.model = chunk.model
                progress.usage = Usage(
                    chunk.prompt_tokens, chunk.cached_tokens, chunk.completion_tokens
                )


def _begin_paragraph(live: LiveTurn, on_delta: OnDelta | None) -> None:
    live.append_text(PARAGRAPH)
    live.progress.step_text_start += 1
    if on_delta:
        on_delta(PARAGRAPH)


def _may_call(live: LiveTurn, agent_tools: AgentTools) -> bool:
    """Tell whether the model may call tools once more; else note why not."""
    steps, policy = live.progress.steps, agent_tools.policy
    if len(steps) >= policy.max_steps:
        live.progress.stop_reason = "max_steps"
    elif sum(len(step.calls) for step in steps) >= policy.max_calls:
        live.progress.stop_reason = "max_calls"
    return live.progress.stop_reason is None


def _lines_of_steps(live: LiveTurn) -> list[PromptLine]:
    """Return this turn's earlier steps as the model is shown them."""
    return [
        line
        for step in live.progress.steps
        for line in step_lines(step.content, [call.part() for call in step.calls], step.images)
    ]


def _take_call(live: LiveTurn, delta: ToolCallDelta) -> None:
    calls = live.progress.calls
    call = calls.get(delta.index)
    if call is None:
        if len(calls) >= _MOST_CALLS_OF_AN_ANSWER:
            raise UpstreamIncomplete("The model called too many tools at once.")
        call = calls[delta.index] = Call(
            step=len(live.progress.steps) + 1,
            index=len(calls),
            model_call_id=storable(delta.call_id)[:200] or f"call_{new_id().hex}",
            name=storable(delta.name)[:_MOST_NAME_CHARACTERS],
            arguments="",
        )
    if delta.arguments:
        call.arguments += storable(delta.arguments)
        if len(call.arguments) > _MOST_ARGUMENT_CHARACTERS:
            raise UpstreamIncomplete("The arguments of a tool call are too long.")
        live.log.emit(ToolCallArguments(call.model_call_id, call.name, delta.arguments))


async def _reserve(live: LiveTurn, runtime: TurnRuntime, messages: Sequence[PromptLine]) -> None:
    """Raise the turn's reservation to what the next answer may need. Raises `BudgetExhausted`."""
    record = live.record
    tokens, nanos = receipts.missing_reservation(record, live.progress, messages, runtime.tariff)
    if record.reservation is None or not (tokens or nanos):
        return

    def script() -> TransactionScript[Reservation]:
        return ledger.raise_reservation(record, tokens, nanos)

    live.set_reservation(await runtime.database.run(script))

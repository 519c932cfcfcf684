"""Ask the model until it answers without calling tools: prompt, answer, calls, and again."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing

from app.core.database import Database
from app.core.database.transactions import TransactionScript
from app.core.storable_text import storable_text
from app.core.value_objects import value_object
from app.models import new_id
from app.services.ports import (
    ChatModel,
    ChatRequest,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallsUnsupported,
    UpstreamIncomplete,
)
from app.services.prompt_lines import PromptLine
from app.services.tool_ports import AgentTools, ToolRunner
from app.services.turns import receipts
from app.services.turns.context.attachments import PromptFiles
from app.services.turns.context.prompt import (
    ContextWindow,
    build_compacted_prompt,
    build_given_prompt,
    build_prompt,
    context_window,
    require_room,
)
from app.services.turns.context.spoken_text import spoken_text
from app.services.turns.events import StepStarted, ToolCallArguments
from app.services.turns.execution.compaction import Compaction
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.own_request import check_callers_calls, with_own_request
from app.services.turns.execution.tool_execution import StepCalls
from app.services.turns.execution.typed_answers import TypedAnswer, typed_answer
from app.services.turns.parts import PARAGRAPH, step_lines
from app.services.turns.records import Usage
from app.services.turns.steps import Call, Step
from app.services.turns.storage import ledger
from app.services.turns.voice_port import VoiceStagesFactory
from app.services.usage import CHARACTERS_PER_TOKEN, PriceTable, Reservation
from app.services.usage.pricing import NANOS

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
    compaction: Compaction | None = None
    """Sums up what prompts leave out; `None` where it is just left out."""
    files: PromptFiles | None = None


OnDelta = Callable[[str], None]
_FILLER_SECONDS = 1.0
"""How long a call may take in silence."""


class _Speech:
    """What is said aloud: a paragraph ends where calls begin, so that nobody waits for them."""

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._has_ended = True

    def say(self, delta: str) -> None:
        self._on_delta(delta)
        self._has_ended = False

    def end_paragraph(self) -> None:
        if not self._has_ended:
            self._on_delta(PARAGRAPH)
            self._has_ended = True


async def answer(live: LiveTurn, runtime: TurnRuntime, on_delta: OnDelta | None = None) -> None:
    """Stream the model's answer into `live`, and run the tools that it calls.

    `on_delta` is called with each piece of text. Raises `ActionsPending` where the turn waits for
    somebody; `ProviderError`, `MessageTooLong`, `BudgetExhausted`, `UnknownToolOutcome`,
    `OutputInvalid`.
    """
    agent_tools, typed = live.record.persona.tools, typed_answer(live)
    speech = _Speech(on_delta) if on_delta else None
    if typed:  # an answer is spoken once it is known to be valid
        await _answer_typed(live, runtime, agent_tools, typed)
        if speech:
            speech.say(spoken_text(live.record, live.progress.output_text or "") or "")
    elif agent_tools:
        await _answer_with_tools(live, runtime, agent_tools, speech)
    else:
        await _ask(live, runtime, None, speech)
    if live.progress.calls:
        check_callers_calls(live)


async def _answer_typed(
    live: LiveTurn, runtime: TurnRuntime, agent_tools: AgentTools | None, typed: TypedAnswer
) -> None:
    """Let the model answer with JSON that the schema allows. Raises `OutputInvalid`.

    Calls of the caller's tools end the turn instead.
    """
    if agent_tools:
        await _answer_with_tools(live, runtime, agent_tools, None, typed)
    else:
        await _ask(live, runtime, None, None, typed)
    while not live.progress.calls and not typed.take():
        typed.reject()
        await _ask(live, runtime, agent_tools, None, typed)


async def _answer_with_tools(
    live: LiveTurn,
    runtime: TurnRuntime,
    agent_tools: AgentTools,
    speech: _Speech | None,
    typed: TypedAnswer | None = None,
) -> None:
    """Ask the model and run its calls until it answers without one."""
    progress = live.progress

    async def missing() -> tuple[int, int]:
        if live.record.reservation is None:
            return 0, 0
        window = context_window(live.record.persona, runtime.chat_model.context_tokens)
        return _missing(live, runtime, await _prompt(live, runtime, window, typed))

    calls = StepCalls(
        live, agent_tools, runtime.database, runtime.tool_runner, missing, runtime.files
    )
    if progress.steps:
        if speech and progress.text:
            speech.say(live.text)
        await _run_calls(live, calls, progress.steps[-1], agent_tools, speech)
    while True:
        if progress.steps:
            live.log.emit(StepStarted(len(progress.steps) + 1))
        await _ask(live, runtime, agent_tools, speech, typed)
        if not progress.calls:
            return
        step = receipts.close_step(progress)
        await calls.check(step, _money_left(live, runtime, agent_tools))
        await _run_calls(live, calls, step, agent_tools, speech)


async def _run_calls(
    live: LiveTurn, calls: StepCalls, step: Step, agent_tools: AgentTools, speech: _Speech | None
) -> None:
    """Run the calls of a step; where nothing was said yet, say the agent's filler after a while."""
    if speech is None:
        await calls.run(step)
        return
    speech.end_paragraph()
    filler = agent_tools.policy.spoken_filler
    if not filler or live.progress.text:
        await calls.run(step)
        return

    def say_filler() -> None:
        step.content = filler
        live.append_text(filler)
        live.progress.step_text_start = len(live.progress.text)
        speech.say(filler)
        speech.end_paragraph()

    timer = asyncio.get_running_loop().call_later(_FILLER_SECONDS, say_filler)
    try:
        await calls.run(step)
    finally:
        timer.cancel()


async def _ask(
    live: LiveTurn,
    runtime: TurnRuntime,
    agent_tools: AgentTools | None,
    speech: _Speech | None,
    typed: TypedAnswer | None = None,
) -> None:
    """Stream one answer of the model into `live`."""
    record, progress, persona = live.record, live.progress, live.record.persona
    chat_model = runtime.chat_model
    if not record.keeps_content:
        window = context_window(persona, chat_model.context_tokens)
    else:
        schema_text = typed.schema_text if typed else ""
        window = require_room(persona, chat_model.context_tokens, record.history[-1], schema_text)
        if runtime.compaction and progress.summary is None:
            shown = typed.window_beside(window) if typed else window
            progress.summary = await runtime.compaction.summary(live, shown)
    messages = await _prompt(live, runtime, window, typed)
    is_correction = typed is not None and bool(typed.correction)
    may_call = (
        agent_tools is not None and not is_correction and _may_call(live, runtime, agent_tools)
    )
    if progress.steps or is_correction:
        await _reserve(live, runtime, messages)
    request = ChatRequest(
        messages=messages,
        model=persona.model,
        temperature=persona.temperature,
        max_output_tokens=window.output_tokens,
        tools=agent_tools.definitions if agent_tools else (),
        may_call_tools=may_call,
        response_format=typed.response_format if typed else None,
    )
    if record.request:
        request = with_own_request(request, record.request)
    progress.prompt, progress.model = messages, persona.model
    progress.output_tokens_limit = window.output_tokens
    await _stream(live, chat_model, request, speech)
    if not progress.calls and len(progress.text) == progress.step_text_start:
        if progress.finish_reason == FinishReason.TOOL_CALLS and not request.tools:
            raise ToolCallsUnsupported("The model asked for tool calls instead of answering.")
        raise UpstreamIncomplete("The AI provider's answer was empty.")


async def _prompt(
    live: LiveTurn, runtime: TurnRuntime, window: ContextWindow, typed: TypedAnswer | None
) -> Sequence[PromptLine]:
    """Return what the model is shown next: the conversation, and this turn's steps so far."""
    record, progress, system_prompt = live.record, live.progress, live.record.persona.system_prompt
    if typed:
        window = typed.window_beside(window)
    messages: Sequence[PromptLine]
    if record.request and not record.keeps_content:
        messages = build_given_prompt(system_prompt, record.request.prompt or ())
    elif runtime.compaction:
        messages = build_compacted_prompt(
            system_prompt, record.history, window, progress.summary or ""
        )
    else:
        messages = build_prompt(
            system_prompt,
            record.history,
            context_tokens=window.context_tokens,
            output_tokens=window.output_tokens,
        )
    correction = typed.correction if typed else ()
    if progress.steps or correction:
        messages = [*messages, *_lines_of_steps(live), *correction]
    if runtime.files is None:
        return messages
    return await runtime.files.load(record.workspace_id, record.persona, messages)


async def _stream(
    live: LiveTurn, chat_model: ChatModel, request: ChatRequest, speech: _Speech | None
) -> None:
    progress = live.progress
    room_characters = (request.max_output_tokens or 0) * CHARACTERS_PER_TOKEN
    async with aclosing(chat_model.stream(request)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, TextDelta):
                if not progress.text:
                    live.mark("first_token_ms")
                elif len(progress.text) == progress.step_text_start:
                    live.mark("first_token_ms")  # where all before it was the filler
                    _begin_paragraph(live, speech)
                delta = chunk.text[:room_characters]
                room_characters -= len(chunk.text)
                live.append_text(delta)
                if speech:
                    speech.say(delta)
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


def _begin_paragraph(live: LiveTurn, speech: _Speech | None) -> None:
    live.append_text(PARAGRAPH)
    live.progress.step_text_start += 1
    if speech:
        speech.end_paragraph()


def _money_left(live: LiveTurn, runtime: TurnRuntime, agent_tools: AgentTools) -> int | None:
    """Return what calls may still cost, in nano-dollars; `None` without a limit."""
    limit = agent_tools.policy.max_usd_per_turn
    if limit is None:
        return None
    steps = live.progress.steps
    return round(limit * NANOS) - receipts.spent_nanos(live.record.persona, steps, runtime.tariff)


def _may_call(live: LiveTurn, runtime: TurnRuntime, agent_tools: AgentTools) -> bool:
    """Tell whether the model may call tools once more; else note why not."""
    steps, policy = live.progress.steps, agent_tools.policy
    if len(steps) >= policy.max_steps:
        live.progress.stop_reason = "max_steps"
    elif sum(len(step.calls) for step in steps) >= policy.max_calls:
        live.progress.stop_reason = "max_calls"
    elif steps and (left := _money_left(live, runtime, agent_tools)) is not None and left <= 0:
        live.progress.stop_reason = "max_usd_per_turn"
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
            model_call_id=_call_id(live, delta),
            name=storable_text(delta.name)[:_MOST_NAME_CHARACTERS],
            arguments="",
        )
        if live.record.persona.tools is None and not delta.arguments:
            live.log.emit(ToolCallArguments(call.model_call_id, call.name, ""))
    if delta.arguments:
        call.arguments += storable_text(delta.arguments)
        if len(call.arguments) > _MOST_ARGUMENT_CHARACTERS:
            raise UpstreamIncomplete("The arguments of a tool call are too long.")
        live.log.emit(ToolCallArguments(call.model_call_id, call.name, delta.arguments))


def _call_id(live: LiveTurn, delta: ToolCallDelta) -> str:
    """Return the provider's id of a call; of a call of the caller's tools, one of ours."""
    given = storable_text(delta.call_id)[:200]
    is_callers = live.record.persona.tools is None
    return f"call_{new_id().hex[-24:]}" if is_callers or not given else given


def _missing(
    live: LiveTurn, runtime: TurnRuntime, messages: Sequence[PromptLine]
) -> tuple[int, int]:
    return receipts.missing_reservation(live.record, live.progress, messages, runtime.tariff)


async def _reserve(live: LiveTurn, runtime: TurnRuntime, messages: Sequence[PromptLine]) -> None:
    """Raise the turn's reservation to what the next answer may need. Raises `BudgetExhausted`."""
    record = live.record
    tokens, nanos = _missing(live, runtime, messages)
    if record.reservation is None or not (tokens or nanos):
        return

    def script() -> TransactionScript[Reservation]:
        return ledger.raise_reservation(record, tokens, nanos)

    live.set_reservation(await runtime.database.run(script))

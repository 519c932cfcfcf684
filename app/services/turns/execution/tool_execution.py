"""Run the tool calls of one step: each is checked, written down, run and stored."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import anyio
import orjson

from app.core.database import Database
from app.core.database.transactions import TransactionScript
from app.core.errors import AppError
from app.models import CallStatus, utc_now
from app.services.prompt_lines import PromptMessage
from app.services.tool_ports import (
    AgentTools,
    Effect,
    OnUnknown,
    PinnedTool,
    ToolCallRequest,
    ToolKind,
    ToolOutcome,
    ToolQuestion,
    ToolResult,
    ToolRunner,
)
from app.services.turns.context.attachments import PromptFiles
from app.services.turns.errors import unknown_outcome
from app.services.turns.events import (
    ActionRequested,
    ActionResolved,
    ToolCallCreated,
    ToolCallStarted,
)
from app.services.turns.execution.live_turn import LiveTurn, required_action
from app.services.turns.execution.result_images import store_images
from app.services.turns.execution.tool_progress import emit_end, progress_sink
from app.services.turns.parts import ToolCallPart, decode_parts, has_calls
from app.services.turns.steps import Call, Step
from app.services.turns.storage import ledger
from app.services.usage import Reservation
from app.services.usage.errors import BudgetExhausted

_BEGINS_OF_IDEMPOTENT = 3
"""How often a call is begun at most whose server stopped: once, and twice again."""
_EQUAL_FAILURES = 2
_STATUS = {
    ToolOutcome.COMPLETED: CallStatus.COMPLETED,
    ToolOutcome.FAILED: CallStatus.FAILED,
    ToolOutcome.UNKNOWN: CallStatus.UNKNOWN,
}
_NEEDS_STORAGE = "This tool waits for somebody to act, which needs a conversation that is stored."
_UNKNOWN_RESULT = (
    "It is not known whether this call was done: the server or the connection broke while it ran. "
    "Do not call it again without asking the user."
)


class ActionsPending(Exception):
    """Some calls of the step wait until somebody acts; the turn waits with them."""


class StepCalls:
    """Runs the calls of the newest step of one turn."""

    def __init__(  # noqa: PLR0913, PLR0917  # what a call needs, once a turn
        self,
        live: LiveTurn,
        agent_tools: AgentTools,
        database: Database,
        runner: ToolRunner | None,
        missing: Callable[[], Awaitable[tuple[int, int]]],
        files: PromptFiles | None = None,
    ) -> None:
        """`missing` returns the tokens and nano-dollars to reserve for the next answer."""
        self._files = files
        self._live = live
        self._agent_tools = agent_tools
        self._database = database
        self._runner = runner
        self._missing = missing

    async def check(self, step: Step, money_left: int | None) -> None:
        """Decide for each new call whether it may run, waits for somebody, or is wrong.

        Calls may cost `money_left` nano-dollars together; `None` is any price.
        Stores the step where something with an effect, or an action, follows.
        """
        made_before = sum(len(each.calls) for each in self._live.progress.steps[:-1])
        is_tainted = self._has_untrusted_text()
        for call in step.calls:
            call.tool = self._agent_tools.tools.get(call.name)
            self._live.log.emit(
                ToolCallCreated(
                    call.id,
                    call.step,
                    call.index,
                    call.name,
                    call.tool.kind.value if call.tool else None,
                    call.arguments,
                )
            )
            is_affordable = money_left is None or call.price_nanos <= max(0, money_left)
            number = made_before + call.index
            self._check_call(call, number, is_tainted=is_tainted, is_affordable=is_affordable)
            if money_left is not None and not call.is_final:
                money_left -= call.price_nanos
        if any(_has_effect(call) for call in step.calls if not call.is_final):
            for call in self._begun_at_once(step):
                self._begin(call)
            await self._store_step(step)
        for call in step.calls:
            if call.is_waiting:
                self._live.log.emit(ActionRequested(required_action(call)))
            elif call.is_final:
                emit_end(self._live.log, call)

    async def run(self, step: Step) -> None:
        """Run what may run, and store each result.

        Raises `ActionsPending` where calls wait, and `UnknownToolOutcome`.
        """
        if step.is_stored:
            await self._settle_interrupted(step)
        runnable = [call for call in step.calls if not call.is_final and not call.is_waiting]
        if len(runnable) == 1:
            await self._run_call(step, runnable[0])
        elif runnable:
            await self._run_together(step, runnable)
        self._fail_if_unknown(step)
        if any(call.is_waiting for call in step.calls):
            raise ActionsPending
        if not step.is_stored:
            await self._store_step_and_reserve(step)

    async def _run_together(self, step: Step, runnable: Sequence[Call]) -> None:
        """Run calls side by side; those with the effect `once` one after the other, in order."""
        one_by_one = [call for call in runnable if _effect(call) is Effect.ONCE]
        limiter = anyio.CapacityLimiter(max(1, self._agent_tools.policy.max_parallel))
        failure: AppError | None = None

        async def run_in_turn(*calls: Call) -> None:
            nonlocal failure
            try:
                for call in calls:
                    async with limiter:
                        await self._run_call(step, call)
            except AppError as error:  # of the database: the turn is lost, or cannot be stored
                failure = failure or error
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(run_in_turn, *one_by_one)
            for call in runnable:
                if call not in one_by_one:
                    group.start_soon(run_in_turn, call)
        if failure:
            raise failure

    def _check_call(
        self, call: Call, number: int, *, is_tainted: bool, is_affordable: bool
    ) -> None:
        tool = call.tool
        if tool is None:
            known = ", ".join(self._agent_tools.tools)
            _refuse(
                call, "tool-unknown", f"There is no tool {call.name!r}. The tools are: {known}."
            )
            return
        if number >= self._agent_tools.policy.max_calls:
            _refuse(call, "tool-limit", "This turn has made as many calls as it may.")
            return
        if not is_affordable:
            _refuse(call, "tool-limit", "This turn may not spend as much as this call costs.")
            return
        problem = self._problem_of(tool, call.arguments)
        if problem:
            schema = orjson.dumps(tool.definition.parameters).decode()
            _refuse(call, "arguments-invalid", f"{problem} The schema is: {schema}")
        elif self._equal_failures(call) >= _EQUAL_FAILURES:
            _refuse(
                call,
                "tool-repeated",
                "The same call failed twice already; it is not run again. Try something else.",
            )
        elif not self._live.record.keeps_content and _must_wait(tool, is_tainted=is_tainted):
            _refuse(call, "tool-unreachable", _NEEDS_STORAGE)
        elif tool.needs_approval(is_tainted=is_tainted):
            call.status = CallStatus.AWAITING_APPROVAL
            call.approval_by = tool.approval_by.value
            call.expires_at = utc_now() + timedelta(seconds=tool.approval_expires_seconds)
        elif tool.kind is ToolKind.CLIENT:
            call.status = CallStatus.AWAITING_OUTPUT
            call.expires_at = utc_now() + timedelta(seconds=tool.expires_seconds)

    def _problem_of(self, tool: PinnedTool, arguments: str) -> str | None:
        try:
            value = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            return "The arguments are not JSON."
        if not isinstance(value, dict):
            return "The arguments are not a JSON object."
        return self._runner.problem_of(tool, arguments or "{}") if self._runner else None

    def _equal_failures(self, call: Call) -> int:
        earlier = [each for step in self._live.progress.steps[:-1] for each in step.calls]
        return sum(
            each.status is CallStatus.FAILED
            and (each.name, each.arguments) == (call.name, call.arguments)
            for each in earlier
        )

    def _has_untrusted_text(self) -> bool:
        """Tell whether the prompt holds the result of a tool that is not trusted."""
        tools, request = self._agent_tools.tools, self._live.record.request
        given = request.prompt if request else None
        if given and not all(isinstance(line, PromptMessage) for line in given):
            return True  # a caller's results of tools
        if all(tool.is_trusted for tool in tools.values()) and not any(
            has_calls(line.parts) for line in self._live.record.history
        ):
            return False
        names = {call.name for step in self._live.progress.steps[:-1] for call in step.calls}
        for line in self._live.record.history:
            if line.parts and has_calls(line.parts):
                parts = decode_parts(orjson.loads(line.parts))
                names |= {part.name for part in parts if isinstance(part, ToolCallPart)}
        return any(name not in tools or not tools[name].is_trusted for name in names)

    def _begun_at_once(self, step: Step) -> Sequence[Call]:
        """Return the calls that are stored as begun together with their step."""
        begun: list[Call] = []
        for call in step.calls:
            if call.is_final or call.is_waiting or _effect(call) is Effect.READ:
                continue
            is_next = _effect(call) is Effect.ONCE and any(
                _effect(each) is Effect.ONCE for each in begun
            )
            if not is_next:
                begun.append(call)
        return begun

    async def _settle_interrupted(self, step: Step) -> None:
        """Decide what becomes of calls that an earlier attempt had begun; tell what was decided."""
        changed: list[Call] = []
        for call in step.calls:
            if call.decision and call.decided_by:
                self._live.log.emit(ActionResolved(call.id, call.decision, call.decided_by))
                if call.is_final:
                    emit_end(self._live.log, call)
            if call.status is not CallStatus.RUNNING or call.is_ours:
                continue
            effect = _effect(call)
            may_run = effect is Effect.READ or (
                effect is Effect.IDEMPOTENT and call.attempt < _BEGINS_OF_IDEMPOTENT
            )
            if may_run:
                call.status = CallStatus.PENDING
            else:
                call.end(CallStatus.UNKNOWN, _UNKNOWN_RESULT, error_code="unknown")
                changed.append(call)
        if changed:
            await self._store_calls(changed)
            for call in changed:
                emit_end(self._live.log, call)

    def _fail_if_unknown(self, step: Step) -> None:
        unknown = [call for call in step.calls if call.status is CallStatus.UNKNOWN]
        if unknown and self._agent_tools.policy.on_unknown is OnUnknown.FAIL:
            raise unknown_outcome(unknown[0].id, unknown[0].name)

    async def _run_call(self, step: Step, call: Call) -> None:
        tool = call.tool
        if tool is None or self._runner is None:
            call.end(
                CallStatus.FAILED,
                "This tool is not available now.",
                error_code="tool-unreachable",
                error_detail="The agent does not have the tool any more.",
            )
            await self._store_call(step, call)
            return
        if call.status is CallStatus.PENDING:
            self._begin(call)
            if step.is_stored and _effect(call) is not Effect.READ:
                await self._store_calls([call])
        self._live.log.emit(ToolCallStarted(call.id, call.attempt))
        record = self._live.record
        result = await self._runner.run(
            ToolCallRequest(
                call.id,
                record.workspace_id,
                record.session_id if record.keeps_content else None,
                record.id,
                record.agent_id,
                record.user_id,
                tool,
                call.arguments or "{}",
                call.attempt,
                self._live.context.traceparent,
                ToolQuestion(**call.question) if call.question and call.answer else None,
                call.answer,
                progress_sink(self._live.log, call) if tool.kind is ToolKind.MCP else None,
            )
        )
        if result.question:
            await self._wait_for_answer(step, call, result.question)
            return
        self._take_result(call, result)
        if self._files and result.files and record.keeps_content:
            call.images = await store_images(self._files, record, call.name, result.files)
            if not call.images:
                call.result = f"{call.result}\n[The image could not be stored.]"
        await self._store_call(step, call)

    async def _wait_for_answer(self, step: Step, call: Call, question: ToolQuestion) -> None:
        if not self._live.record.keeps_content:
            _refuse(call, "tool-unreachable", _NEEDS_STORAGE)
            emit_end(self._live.log, call)
            return
        call.ask(question)
        if not step.is_stored:
            await self._store_step(step)
        await self._store_calls([call])
        self._live.log.emit(ActionRequested(required_action(call)))

    def _begin(self, call: Call) -> None:
        call.status, call.is_ours = CallStatus.RUNNING, True
        call.attempt += 1
        call.started_at = utc_now()
        self._live.progress.tools_nanos += call.price_nanos

    @staticmethod
    def _take_result(call: Call, result: ToolResult) -> None:
        status = _STATUS[result.outcome]
        if status is CallStatus.UNKNOWN and _effect(call) is not Effect.ONCE:
            status = CallStatus.FAILED
        text = _UNKNOWN_RESULT if status is CallStatus.UNKNOWN else result.text
        call.end(
            status,
            text,
            stored_result=result.stored_text if result.stored_text != text else None,
            error_code=result.error_code,
            error_detail=result.error_detail,
        )

    async def _store_step(self, step: Step) -> None:
        if self._live.record.keeps_content:
            await self._database.run_repeatable(ledger.store_step, self._live.record, step)
        step.is_stored = True  # or need not be: an unstored turn is never run again

    async def _store_calls(self, calls: Sequence[Call]) -> None:
        if self._live.record.keeps_content:
            await self._database.run_repeatable(ledger.store_calls, self._live.record, calls)

    async def _store_step_and_reserve(self, step: Step) -> None:
        """Store a step of `read` calls with their results; reserve for the next answer with it."""
        tokens, nanos = await self._missing()
        record = self._live.record

        def script() -> TransactionScript[Reservation]:
            yield from ledger.store_step(record, step)
            return (yield from ledger.raise_reservation(record, tokens, nanos))

        if record.keeps_content and (tokens or nanos):
            try:
                self._live.set_reservation(await self._database.run(script))
            except BudgetExhausted:  # is raised again before the next answer
                pass
            else:
                step.is_stored = True
                return
        await self._store_step(step)

    async def _store_call(self, step: Step, call: Call) -> None:
        if step.is_stored:
            await self._store_calls([call])
        emit_end(self._live.log, call)


def _refuse(call: Call, code: str, sentence: str) -> None:
    call.end(CallStatus.FAILED, sentence, error_code=code, error_detail=sentence[:500])


def _effect(call: Call) -> Effect:
    return call.tool.effect if call.tool else Effect.ONCE


def _has_effect(call: Call) -> bool:
    return call.is_waiting or _effect(call) is not Effect.READ


def _must_wait(tool: PinnedTool, *, is_tainted: bool) -> bool:
    return tool.kind is ToolKind.CLIENT or tool.needs_approval(is_tainted=is_tainted)

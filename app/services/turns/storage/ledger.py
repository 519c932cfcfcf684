"""Transaction scripts of the ledger: steps and tool calls of a turn, written before they are done.

Each may run twice: ids are made before, and a write of an older attempt is refused.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Dialect,
    Update,
    and_,
    bindparam,
    case,
    delete,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, Rows, Statement, upsert
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import LONG_RESULTS, UNFINISHED_CALLS, CallStatus, utc_now
from app.services.tool_ports import AgentTools, Effect
from app.services.turns.errors import turn_lost
from app.services.turns.parts import decode_parts, encode_parts, is_image
from app.services.turns.records import TurnRecord
from app.services.turns.steps import Call, Step
from app.services.turns.storage import turn_statements
from app.services.turns.storage.tables import (
    is_turn,
    same_named_parameters,
    tool_calls,
    turn_steps,
    turns,
)
from app.services.usage import Reservation, reservations

_CALL_COLUMNS = (
    "id", "step", "index", "model_call_id", "name", "arguments", "status", "attempt", "result",
    "stored_result", "files", "error_code", "error_detail", "approval_by", "expires_at",
    "started_at", "ended_at", "resolution", "question", "answer",
)  # fmt: skip
_CHANGING_COLUMNS = (
    "status", "attempt", "result", "stored_result", "files", "error_code", "error_detail",
    "approval_by", "expires_at", "started_at", "ended_at", "cost_nanos", "question", "answer",
)  # fmt: skip


_PRUNED_AT_ONCE = 500


def store_step(record: TurnRecord, step: Step) -> TransactionScript[None]:
    """Store a step with its calls as they are now. Raises `TurnLost`."""
    now = utc_now()
    held, *_ = yield [
        _hold(record),
        _INSERT_STEP(
            workspace_id=record.workspace_id,
            turn_id=record.id,
            number=step.number,
            created_at=now,
            content=step.content,
            reasoning=step.reasoning,
            model=step.model,
            prompt_tokens=step.prompt_tokens,
            cached_tokens=step.cached_tokens,
            completion_tokens=step.completion_tokens,
            usage_estimated=step.usage_estimated,
            is_billed=False,
        ),
        *[_INSERT_CALL(**_call_values(record, call), created_at=now) for call in step.calls],
        _COUNT_STEPS(workspace_id_=record.workspace_id, turn_id_=record.id, step_count=step.number),
    ]
    if not held:
        raise turn_lost()  # rolls the transaction back


def store_calls(record: TurnRecord, calls: Iterable[Call]) -> TransactionScript[None]:
    """Store what became of calls of a stored step. Raises `TurnLost`."""
    held, *_ = yield [
        _hold(record),
        *[
            _UPDATE_CALL(
                workspace_id_=record.workspace_id, call_id_=call.id, **_changing_values(call)
            )
            for call in calls
        ],
    ]
    if not held:
        raise turn_lost()


def raise_reservation(
    record: TurnRecord, tokens: int, nanos: int
) -> TransactionScript[Reservation]:
    """Reserve more for a turn whose model is asked again. Raises `TurnLost`, `BudgetExhausted`."""
    reservation = record.reservation
    if reservation is None:
        raise ValueError("the turn has no reservation")
    (held,) = yield [_hold(record)]
    if not held:
        raise turn_lost()
    raised = yield from reservations.raise_reservation(
        record.workspace_id, reservation, tokens, nanos
    )
    yield [
        _SET_RESERVED(
            workspace_id_=record.workspace_id,
            turn_id_=record.id,
            reserved_tokens=raised.tokens,
            reserved_nanos=raised.nanos,
        )
    ]
    return raised


def load_steps(record: TurnRecord) -> TransactionScript[tuple[Step, ...]]:
    """Load the stored steps of a turn with their calls, in order."""
    turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
    step_rows, call_rows = yield [_STEPS(**turn), _CALLS(**turn)]
    calls = _read_calls(call_rows, record.persona.tools)
    return tuple(_step(row, calls) for row in step_rows)


def close_calls_stmts(record: TurnRecord) -> Sequence[Statement]:
    """Return the statements that end the calls of a turn that is over, and bill its steps.

    A `once` call that was begun may have been done.
    """
    turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
    return _CLOSE_CALLS(**turn, ended_at=utc_now()), _BILL_STEPS(**turn)


def discard_steps_stmts(record: TurnRecord) -> Sequence[Statement]:
    """Return the statements that delete the steps of a failed attempt before a restart."""
    turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
    parts = turn_statements.SETTLE_PARTS(
        workspace_id_=record.workspace_id, message_id_=record.message_id, parts=None
    )
    return _DELETE_CALLS(**turn), _DELETE_STEPS(**turn), parts


def bill_steps_stmts(record: TurnRecord) -> Sequence[Statement]:
    """Return the statement that marks the usage of a turn's steps as part of its receipt."""
    return (_BILL_STEPS(workspace_id_=record.workspace_id, turn_id_=record.id),)


def prune_results(before: datetime) -> TransactionScript[bool]:
    """Drop the full results of calls that ended earlier; return whether there may be more.

    What the model was shown is kept.
    """
    dropped = yield from fetch_one(_PRUNE_RESULTS(before_=before))
    return len(dropped) == _PRUNED_AT_ONCE


def _hold(record: TurnRecord) -> Statement:
    return turn_statements.HOLD_TURN(
        workspace_id_=record.workspace_id, turn_id_=record.id, attempt_=record.attempt
    )


def _step(row: Sequence[Any], calls: Sequence[Call]) -> Step:
    number, content, reasoning, model, prompt, cached, completion, estimated, billed = row
    return Step(
        number,
        content,
        reasoning,
        model,
        prompt,
        cached,
        completion,
        usage_estimated=bool(estimated),
        calls=[call for call in calls if call.step == number],
        is_billed=bool(billed),
        is_stored=True,
    )


def _read_calls(rows: Rows, agent_tools: AgentTools | None) -> list[Call]:
    calls: list[Call] = []
    for row in rows:
        values = dict(zip(_CALL_COLUMNS, row, strict=True))
        tool = agent_tools.tools.get(values["name"]) if agent_tools else None
        resolution: dict[str, str] = values.pop("resolution") or {}
        decision, decided_by = resolution.get("decision"), resolution.get("by")
        images = [part for part in decode_parts(values.pop("files") or ()) if is_image(part)]
        call = Call(**values, images=images, tool=tool, decision=decision, decided_by=decided_by)
        call.was_final = call.is_final
        calls.append(call)
    return calls


def _call_values(record: TurnRecord, call: Call) -> dict[str, Any]:
    tool = call.tool
    return {
        "workspace_id": record.workspace_id,
        "id": call.id,
        "turn_id": record.id,
        "session_id": record.session_id,
        "agent_id": record.agent_id,
        "step": call.step,
        "index": call.index,
        "model_call_id": call.model_call_id,
        "tool_id": tool.tool_id if tool else None,
        "tool_version": tool.version if tool else None,
        "name": call.name,
        "kind": tool.kind.value if tool else None,
        "effect": tool.effect.value if tool else None,
        "arguments": call.arguments,
        **_changing_values(call),
    }


def _changing_values(call: Call) -> dict[str, Any]:
    computed = {
        "cost_nanos": call_cost_nanos(call),
        "files": encode_parts(call.images) if call.images else None,
    }
    return {
        name: computed[name] if name in computed else getattr(call, name)
        for name in _CHANGING_COLUMNS
    }


def call_cost_nanos(call: Call) -> int | None:
    """Return what a call that was begun costs, in nano-dollars; `None` without a price."""
    if call.tool is None or call.tool.price_usd is None or not call.attempt:
        return None
    return call.cost_nanos


def _insert_step_stmt(dialect: Dialect) -> ClauseElement:
    names = turn_steps.c.keys()
    return (
        upsert(dialect, turn_steps).values(**same_named_parameters(*names)).on_conflict_do_nothing()
    )


def _insert_call_stmt(dialect: Dialect) -> ClauseElement:
    names = [column.name for column in tool_calls.c if column.name != "resolution"]
    return (
        upsert(dialect, tool_calls).values(**same_named_parameters(*names)).on_conflict_do_nothing()
    )


def _update_call_stmt(_dialect: Dialect) -> Update:
    # What somebody did meanwhile holds: a call that they ended, or allowed, is not waiting again.
    return (
        update(tool_calls)
        .where(
            tool_calls.c.workspace_id == bindparam("workspace_id_"),
            tool_calls.c.id == bindparam("call_id_"),
            text(UNFINISHED_CALLS),
        )
        .values(**same_named_parameters(*_CHANGING_COLUMNS))
    )


def _of_turn(table: Any) -> Any:  # noqa: ANN401  # SQLAlchemy's table and condition
    return and_(
        table.c.workspace_id == bindparam("workspace_id_"), table.c.turn_id == bindparam("turn_id_")
    )


def _close_calls_stmt(_dialect: Dialect) -> Update:
    was_begun = and_(
        tool_calls.c.status == CallStatus.RUNNING, tool_calls.c.effect == Effect.ONCE.value
    )
    return (
        update(tool_calls)
        .where(_of_turn(tool_calls), text(UNFINISHED_CALLS))
        .values(
            status=case((was_begun, CallStatus.UNKNOWN.value), else_=CallStatus.CANCELLED.value),
            **same_named_parameters("ended_at"),
        )
    )


def _steps_stmt(_dialect: Dialect) -> ClauseElement:
    columns = (
        "number", "content", "reasoning", "model", "prompt_tokens", "cached_tokens",
        "completion_tokens", "usage_estimated", "is_billed",
    )  # fmt: skip
    return (
        select(*(turn_steps.c[name] for name in columns))
        .where(_of_turn(turn_steps))
        .order_by(turn_steps.c.number)
    )


def _calls_stmt(_dialect: Dialect) -> ClauseElement:
    return (
        select(*(tool_calls.c[name] for name in _CALL_COLUMNS))
        .where(_of_turn(tool_calls))
        .order_by(tool_calls.c.step, tool_calls.c.index)
    )


def _count_steps_stmt(_dialect: Dialect) -> Update:
    return update(turns).where(is_turn()).values(**same_named_parameters("step_count"))


def _set_reserved_stmt(_dialect: Dialect) -> Update:
    columns = same_named_parameters("reserved_tokens", "reserved_nanos")
    return update(turns).where(is_turn()).values(**columns)


def _bill_steps_stmt(_dialect: Dialect) -> Update:
    return update(turn_steps).where(_of_turn(turn_steps)).values(is_billed=True)


def _prune_results_stmt(_dialect: Dialect) -> Update:
    before = bindparam("before_", type_=tool_calls.c.ended_at.type)
    old = (
        select(tool_calls.c.workspace_id, tool_calls.c.id)
        .where(text(LONG_RESULTS), tool_calls.c.ended_at < before)
        .limit(_PRUNED_AT_ONCE)
    )
    return (
        update(tool_calls)
        .where(tuple_(tool_calls.c.workspace_id, tool_calls.c.id).in_(old))
        .values(stored_result=None)
        .returning(tool_calls.c.id)
    )


_DELETE_CALLS = PreparedStatement(lambda _: delete(tool_calls).where(_of_turn(tool_calls)))
_DELETE_STEPS = PreparedStatement(lambda _: delete(turn_steps).where(_of_turn(turn_steps)))
_INSERT_STEP = PreparedStatement(_insert_step_stmt)
_INSERT_CALL = PreparedStatement(_insert_call_stmt)
_UPDATE_CALL = PreparedStatement(_update_call_stmt)
_CLOSE_CALLS = PreparedStatement(_close_calls_stmt)
_SET_RESERVED = PreparedStatement(_set_reserved_stmt)
_BILL_STEPS = PreparedStatement(_bill_steps_stmt)
_COUNT_STEPS = PreparedStatement(_count_steps_stmt)
_STEPS = PreparedStatement(_steps_stmt)
_CALLS = PreparedStatement(_calls_stmt)
_PRUNE_RESULTS = PreparedStatement(_prune_results_stmt)

"""Transaction scripts for actions: one resolution of a call that waits, and the turn goes on."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Dialect, Update, bindparam, func, or_, select, text, update
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.value_objects import value_object
from app.models import (
    UNFINISHED_CALLS,
    WAITING_CALLS,
    WAITING_STATUSES,
    CallStatus,
    TurnStatus,
    utc_now,
)
from app.services.turns.errors import (
    ActionAlreadyTaken,
    ActionExpired,
    ActionNotWanted,
    tool_call_not_found,
)
from app.services.turns.parts import ImagePart, encode_parts
from app.services.turns.records import TurnRecord
from app.services.turns.storage import audio_store, file_uses, turn_statements
from app.services.turns.storage.tables import (
    LEASE,
    is_turn,
    lease_end,
    same_named_parameters,
    tool_calls,
    turns,
)
from app.services.turns.storage.turn_rows import TURN_COLUMNS, TurnRow, load_record
from app.services.usage import Reservation, budgets, reservations

_WANTED = {
    CallStatus.AWAITING_APPROVAL.value: ({"approve", "deny"}, "an approval"),
    CallStatus.AWAITING_OUTPUT.value: ({"output", "error"}, "an output"),
    CallStatus.AWAITING_ANSWER.value: ({"answer"}, "an answer"),
}
_EXPIRED_RESULT = "Nobody answered in time, so the call was not run."


@value_object(frozen=True, slots=True)
class Resolution:
    """An action: `approve` or `deny` a call, send its `output`, an `error` or an `answer`.

    Or `expire`.
    """

    decision: str
    by: str
    """Who acts: `key:...`, `user:...`, `admin`, or `server` for one that expired."""
    text: str | None = None
    """The output or the error as the model is shown it, the reason of a denial, or the answer."""
    images: Sequence[ImagePart] = ()
    """Of the output."""

    @property
    def digest(self) -> str:
        """SHA-256 of decision and text, by which the same action is known again."""
        shown = [self.decision, self.text or "", *(image.file_id for image in self.images)]
        return hashlib.sha256("\n".join(shown).encode()).hexdigest()


@value_object(frozen=True, slots=True)
class Resolved:
    """What became of an action."""

    session_id: UUID
    turn_id: UUID
    is_new: bool = False
    """False where the same action had been taken before."""
    record: TurnRecord | None = None
    """The turn as a new attempt of this server, if that was the last action it waited for."""


def resolve(
    workspace_id: UUID, call_id: UUID, action: Resolution, owner_id: UUID
) -> TransactionScript[Resolved]:
    """Store an action; where it was the last one, the turn becomes a running one of `owner_id`.

    Raises `ToolCallNotFound`, `ActionAlreadyTaken`, `ActionExpired`, `ActionNotWanted`, and
    `FileNotFound`, `BudgetExhausted`, `TooManyTurns` where the turn may not go on now.
    """
    call = {"workspace_id_": workspace_id, "call_id_": call_id}
    found = yield from fetch_one(_CALL(**call))
    if not found:
        raise tool_call_not_found()
    turn_id, session_id = found[0][0], found[0][1]
    now = utc_now()
    yield [
        turn_statements.LOCK_SESSION(workspace_id_=workspace_id, session_id_=session_id, now=now)
    ]
    rows = yield from fetch_one(_CALL(**call))
    if not rows:
        raise tool_call_not_found()
    _, _, status, kind, expires_at, earlier = rows[0]
    decisions, what = _WANTED.get(status, ((), ""))
    if earlier and action.decision not in decisions:  # else it waits for another one by now
        if earlier.get("digest") == action.digest:
            return Resolved(session_id, turn_id)
        if earlier.get("decision") == "expire":
            raise ActionExpired("The time for this action is over.")
        raise ActionAlreadyTaken("Another action was taken for this call.")
    if status not in WAITING_STATUSES:
        raise ActionNotWanted("This call does not wait for an action.")
    if action.decision != "expire" and expires_at and expires_at <= now:
        raise ActionExpired("The time for this action is over.")
    if action.decision != "expire" and action.decision not in decisions:
        raise ActionNotWanted(f"This call waits for {what}.")
    values = _after(action, kind, now)
    resolution: dict[str, str | None] = {
        "decision": action.decision,
        "by": action.by,
        "at": now.isoformat(),
        "digest": action.digest,
    }
    if action.decision == "deny":
        resolution["reason"] = action.text
    yield from file_uses.use_in_session(workspace_id, session_id, action.images)
    images = encode_parts(action.images) if action.images else None
    yield [_RESOLVE(**call, **values, resolution=resolution, files=images)]
    record = yield from resume(workspace_id, turn_id, owner_id)
    return Resolved(session_id, turn_id, is_new=True, record=record)


def resume(
    workspace_id: UUID, turn_id: UUID, owner_id: UUID
) -> TransactionScript[TurnRecord | None]:
    """Let a waiting turn run again if no call of it waits; the caller has locked its session."""
    turn = {"workspace_id_": workspace_id, "turn_id_": turn_id}
    (((waiting,),), rows) = yield [_COUNT_WAITING(**turn), _WAITING_TURN(**turn)]
    if waiting or not rows:
        return None
    now = utc_now()
    is_limited = yield from _reserve_again(TurnRow(*rows[0]), now)
    resumed = yield from fetch_one(
        _RESUME(
            **turn,
            owner_id=owner_id,
            lease_end_=now + LEASE,
            reserved_day=now.date() if is_limited else None,
        )
    )
    if not resumed:
        return None
    record = yield from load_record(TurnRow(*resumed[0]))
    yield [audio_store.discard_pieces_stmt(record)]
    return record


def expired_calls() -> TransactionScript[list[tuple[UUID, UUID]]]:
    """Return workspace and id of up to 100 calls whose action came too late."""
    rows = yield from fetch_one(_EXPIRED_CALLS(now_=utc_now()))
    return [(workspace_id, call_id) for workspace_id, call_id in rows]


def _after(action: Resolution, kind: str | None, now: datetime) -> dict[str, Any]:
    """Return the columns of a call after an action."""
    ended: dict[str, Any] = {
        "result": action.text,
        "ended_at": now,
        "error_code": None,
        "error_detail": None,
        "expires_at": None,
        "answer": None,
    }
    match action.decision:
        case "approve":
            # The output of a client's tool has as long as it had from the beginning.
            status = CallStatus.AWAITING_OUTPUT if kind == "client" else CallStatus.PENDING
            return ended | {"status": status, "result": None, "ended_at": None}
        case "output":
            return ended | {"status": CallStatus.COMPLETED}
        case "answer":
            # It goes on; the answer is stored as it is given to the server.
            running = {"status": CallStatus.PENDING, "result": None, "ended_at": None}
            return ended | running | {"answer": orjson.loads(action.text or "{}")}
        case "error":
            return ended | {
                "status": CallStatus.FAILED,
                "error_code": "tool-failed",
                "error_detail": "The caller's own code failed.",
            }
        case "deny":
            reason = f" They said: {action.text}" if action.text else ""
            return ended | {
                "status": CallStatus.DENIED,
                "result": f"The call was not allowed, and not run.{reason}",
                "error_code": "tool-denied",
                "error_detail": "The call was denied.",
            }
        case _:
            return ended | {
                "status": CallStatus.EXPIRED,
                "result": _EXPIRED_RESULT,
                "error_code": "action-expired",
                "error_detail": "Nobody acted in time.",
            }


def _reserve_again(row: TurnRow, now: datetime) -> TransactionScript[bool]:
    """Count the turn as a live one again; what its next step needs is reserved by that step.

    Returns whether budgets limit it.
    """
    limits = (row.request or {}).get("bucket_limits", {})
    if not limits:
        return False
    buckets = tuple(reservations.stored_bucket(name, limits[name]) for name in sorted(limits))
    yield from budgets.reserve_for(
        row.workspace_id, Reservation(buckets, now.date(), tokens=0, nanos=0)
    )
    return True


def _call_stmt(_dialect: Dialect) -> ClauseElement:
    columns = tool_calls.c
    return select(
        columns.turn_id,
        columns.session_id,
        columns.status,
        columns.kind,
        columns.expires_at,
        columns.resolution,
    ).where(columns.workspace_id == bindparam("workspace_id_"), columns.id == bindparam("call_id_"))


def _resolve_stmt(_dialect: Dialect) -> Update:
    names = (
        "status", "result", "ended_at", "error_code", "error_detail", "expires_at", "resolution",
        "files", "answer",
    )  # fmt: skip
    return (
        update(tool_calls)
        .where(
            tool_calls.c.workspace_id == bindparam("workspace_id_"),
            tool_calls.c.id == bindparam("call_id_"),
            text(UNFINISHED_CALLS),
        )
        .values(**same_named_parameters(*names))
    )


def _count_waiting_stmt(_dialect: Dialect) -> ClauseElement:
    return (
        select(func.count())
        .select_from(tool_calls)
        .where(
            tool_calls.c.workspace_id == bindparam("workspace_id_"),
            tool_calls.c.turn_id == bindparam("turn_id_"),
            or_(*(tool_calls.c.status == status for status in WAITING_STATUSES)),
        )
    )


def _waiting_turn_stmt(_dialect: Dialect) -> ClauseElement:
    return select(*TURN_COLUMNS).where(is_turn(), turns.c.status == TurnStatus.REQUIRES_ACTION)


def _resume_stmt(dialect: Dialect) -> Update:
    return (
        update(turns)
        .where(is_turn(), turns.c.status == TurnStatus.REQUIRES_ACTION)
        .values(
            status=TurnStatus.IN_PROGRESS,
            attempt=turns.c.attempt + 1,
            recoveries=0,
            owner_id=bindparam("owner_id"),
            lease_expires_at=lease_end(dialect),
            reserved_day=bindparam("reserved_day"),
            reserved_tokens=0,
            reserved_nanos=0,
        )
        .returning(*TURN_COLUMNS)
    )


def _expired_calls_stmt(_dialect: Dialect) -> ClauseElement:
    now = bindparam("now_", type_=tool_calls.c.expires_at.type)
    return (
        select(tool_calls.c.workspace_id, tool_calls.c.id)
        .where(text(WAITING_CALLS), tool_calls.c.expires_at <= now)
        .limit(100)
    )


_CALL = PreparedStatement(_call_stmt)
_RESOLVE = PreparedStatement(_resolve_stmt)
_COUNT_WAITING = PreparedStatement(_count_waiting_stmt)
_WAITING_TURN = PreparedStatement(_waiting_turn_stmt)
_RESUME = PreparedStatement(_resume_stmt)
_EXPIRED_CALLS = PreparedStatement(_expired_calls_stmt)

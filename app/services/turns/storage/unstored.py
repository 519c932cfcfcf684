"""Transaction scripts of unstored turns: a row with receipt, limits and key, and no content."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import orjson
from sqlalchemy import select

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import Modality, TurnStatus, utc_now
from app.services.prompt_lines import PromptMessage
from app.services.turns import receipts
from app.services.turns.context.prompt import require_room_for_all
from app.services.turns.errors import (
    AnswerNotKept,
    error_of_code,
    is_retryable,
    tools_not_taken,
    turn_lost,
)
from app.services.turns.parts import image_count, shown_texts
from app.services.turns.records import (
    Outcome,
    Progress,
    RequestKey,
    TurnOptions,
    TurnRecord,
    TurnRequest,
    persona_of_request,
    schema_of_answer,
)
from app.services.turns.storage import idempotency_keys, leases, turn_statements
from app.services.turns.storage.acceptance import (
    AcceptedTurn,
    NewMessage,
    TurnCache,
    load_persona,
)
from app.services.turns.storage.agent_lookup import find_agent
from app.services.turns.storage.settlement import store_outcome_stmt
from app.services.turns.storage.tables import LEASE, is_attempt, turns
from app.services.turns.storage.turn_rows import TurnRow, load_record
from app.services.usage import budgets


def accept(
    message: NewMessage, options: TurnOptions, owner_id: UUID, cache: TurnCache
) -> TransactionScript[AcceptedTurn]:
    """Insert the row of an unstored turn of `options.agent_id`; its session is never asked for.

    A key that was used before returns its turn while that runs, and begins anew where it failed
    with a retryable error or was cancelled. Raises `AgentNotFound`, `AgentArchived`,
    `AnswerNotKept`, `IdempotencyKeyReused`, `MessageTooLong`, `ToolsNotTaken`, `TooManyTurns`,
    `BudgetExhausted`, and the error that the key's turn ended with.
    """
    if options.key:
        running = yield from _find_by_key(message.workspace_id, options.key)
        if running:
            return AcceptedTurn(running, is_replayed=True)
    now = utc_now()
    record = yield from _new_record(message, options, cache, now)
    inserted = turn_statements.INSERT_LIVE_TURN(
        workspace_id=record.workspace_id,
        id=record.id,
        session_id=None,
        agent_version=record.persona.version,
        modality=record.modality,
        status=record.status,
        user_message_id=record.user_message_id,
        message_id=record.message_id,
        user_seq=0,
        created_at=now,
        agent_id=record.agent_id,
        key_id=record.key_id,
        user_id=record.user_id,
        request=None,
        owner_id=owner_id,
        started_at=now,
        lease_end_=now + LEASE,
        **receipts.reserved_columns(record.reservation),
    )
    yield from budgets.reserve(message.account, record.reservation, [inserted])
    if options.key:
        yield [idempotency_keys.link_turn_stmt(record, options.key)]
    return AcceptedTurn(record)


def settle(
    record: TurnRecord,
    outcome: Outcome,
    progress: Progress,
    ended_at: datetime,
    *,
    may_be_stored: bool,
) -> TransactionScript[None]:
    """Store status, usage and error of an unstored turn, and give back its reservation.

    `may_be_stored`: an earlier COMMIT had no answer. Raises `TurnLost`.
    """
    if may_be_stored:
        turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
        rows = yield from fetch_one(_ENDED_AT(**turn, attempt_=record.attempt))
        if rows and rows[0][0] == ended_at:
            return
    ended, *_ = yield [
        store_outcome_stmt(record, outcome, progress, ended_at),
        *receipts.settle_reservation_stmts(record, progress),
    ]
    if not ended:
        raise turn_lost()  # rolls the transaction back


def find_status(workspace_id: UUID, turn_id: UUID) -> TransactionScript[TurnRow | None]:
    """Return the row of an unstored turn; `None` where there is none, or it is a stored turn's."""
    row = yield from leases.find_row(workspace_id, turn_id)
    return row if row and row.session_id is None else None


def _find_by_key(workspace_id: UUID, key: RequestKey) -> TransactionScript[TurnRecord | None]:
    turn_id = yield from idempotency_keys.claim(workspace_id, key)
    row = (yield from leases.find_row(workspace_id, turn_id)) if turn_id else None
    if row is None:
        return None
    if row.status is TurnStatus.COMPLETED:
        raise AnswerNotKept(
            "This request was answered before, and its answer is not stored: send it again with "
            "another Idempotency-Key."
        )
    record = yield from load_record(row, history=False)
    if row.status is TurnStatus.IN_PROGRESS:
        return record
    error = error_of_code(row.error_code or "", "The first request with this key failed.")
    may_run_again = is_retryable(error) or row.status is TurnStatus.CANCELLED
    if may_run_again and record.persona.tools is None:  # nobody knows what its tools did
        return None
    raise error


def _new_record(
    message: NewMessage, options: TurnOptions, cache: TurnCache, now: datetime
) -> TransactionScript[TurnRecord]:
    agent_id, version = yield from find_agent(message.workspace_id, options.agent)
    stored = yield from load_persona((message.workspace_id, agent_id, version), cache.personas)
    request, account = options.request, message.account
    if request.tools and stored.tools is not None:
        raise tools_not_taken()
    persona = persona_of_request(stored, request)
    texts = _texts(request)
    schema = schema_of_answer(persona, request.answer_format)
    if schema is not None:
        texts = [*texts, orjson.dumps(schema).decode()]
    require_room_for_all(persona, account.context_tokens, texts)
    reservation = receipts.estimate_reservation(
        message,
        persona,
        [PromptMessage("", text) for text in texts],
        now,
        waiting=0,
        user_id=message.user_id,
        images=image_count(request.prompt or ()),
    )
    return TurnRecord(
        workspace_id=message.workspace_id,
        id=message.turn_id,
        session_id=message.turn_id,
        modality=Modality.TEXT,
        status=TurnStatus.IN_PROGRESS,
        attempt=1,
        user_message_id=message.user_message_id,
        message_id=message.message_id,
        user_seq=0,
        created_at=now,
        persona=persona,
        history=(),
        reservation=reservation,
        agent_id=agent_id,
        key_id=account.key_id,
        user_id=account.user_id,
        request=request,
        keeps_content=False,
    )


def _texts(request: TurnRequest) -> Sequence[str]:
    """Return all that a model is shown of a request, to estimate its size."""
    texts = list(shown_texts(request.prompt or ()))
    if request.tools:
        texts.append(orjson.dumps(request.tools).decode())
    return texts


_ENDED_AT = PreparedStatement(lambda _: select(turns.c.ended_at).where(is_attempt()))

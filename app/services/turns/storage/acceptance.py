"""The transaction script that accepts a turn.

Every transaction that changes a session's turns first locks the session's row, so that order and
queue are decided serially; on SQLite `BEGIN IMMEDIATE` does the same.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Dialect, Update, bindparam, text, update

from app.core.database.statements import PreparedStatement, Rows
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.value_objects import value_object
from app.models import (
    LIVE,
    MessageStatus,
    Modality,
    Role,
    TurnStatus,
    new_id,
    utc_now,
)
from app.services.crud import AgentArchived, SessionBusy, VersionNotFound, session_not_found
from app.services.turns import receipts
from app.services.turns.context.history_cache import (
    History,
    HistoryCache,
    immutable_prefix,
)
from app.services.turns.context.persona_cache import PersonaCache, PersonaKey
from app.services.turns.context.prompt import LOADED_MESSAGES, require_room
from app.services.turns.errors import SessionQueueFull, SpeechNotNamed, tools_not_taken
from app.services.turns.parts import InputPart, stored_parts
from app.services.turns.records import (
    BusyPolicy,
    HistoryMessage,
    Persona,
    TurnOptions,
    TurnRecord,
    TurnRequest,
    persona_of_request,
    schema_of_answer,
)
from app.services.turns.storage import (
    conversations,
    file_uses,
    idempotency_keys,
    turn_statements,
)
from app.services.turns.storage.repetition import UNSETTLED_IDS, run_again_or_find
from app.services.turns.storage.tables import (
    LEASE,
    is_turn,
    same_named_parameters,
    turns,
)
from app.services.turns.storage.turn_rows import (
    read_history,
    read_persona,
)
from app.services.usage import UNLIMITED_ACCOUNT, Account, budgets, reservations

QUEUE_LIMIT = 8
"""Maximum number of queued turns of a session."""
_NO_PLACES: tuple[Any, ...] = (0, None, None, None, None)


@value_object(frozen=True, slots=True)
class NewMessage:
    """A user message to accept."""

    workspace_id: UUID
    session_id: UUID
    modality: Modality
    content: str
    """Empty for a voice turn, until it is transcribed."""
    account: Account = UNLIMITED_ACCOUNT
    upload_seconds: float | None = None
    """Duration of a voice turn's recording; `None` for text."""
    output: Modality = Modality.TEXT
    """Whether the answer is spoken."""
    user_id: str | None = None
    """The end user who sends it and must own the session."""
    turn_id: UUID = field(default_factory=new_id)
    """The ids exist before the transaction, so that the turn is found after a lost COMMIT."""
    user_message_id: UUID = field(default_factory=new_id)
    message_id: UUID = field(default_factory=new_id)


@value_object(frozen=True, slots=True)
class TurnCache:
    """Caches of this process: personas and histories."""

    personas: PersonaCache = field(default_factory=PersonaCache)
    histories: HistoryCache = field(default_factory=HistoryCache)


@value_object(frozen=True, slots=True)
class AcceptedTurn:
    """An accepted turn, new or found by its key; `interrupt_id` is the live turn to cancel."""

    record: TurnRecord
    is_replayed: bool = False
    interrupt_id: UUID | None = None
    interrupts_waiting: bool = False
    """True where that turn waits for a client's action, so that no server runs it."""
    is_taken_over: bool = False
    """True if the turn went on without this server while it was unknown whether it was stored."""
    settled: History = ()
    """The part of the history to cache for the session's next turn."""


def accept(
    message: NewMessage, options: TurnOptions, owner_id: UUID, cache: TurnCache
) -> TransactionScript[AcceptedTurn]:
    """Insert the user message, the empty assistant message and the turn, live or queued.

    An idempotency key that was used before returns its turn, which is restarted if it failed with
    a retryable error.
    Raises `SessionNotFound`, `AgentArchived`, `SessionBusy`, `SessionQueueFull` or
    `IdempotencyKeyReused`, `MessageTooLong`, `TooManyTurns`, `UploadsExhausted`,
    `BudgetExhausted`, `FileNotFound`, `SpeechNotNamed`, `VersionNotFound`, and for a turn of
    another dialect what `conversations` does, and `ToolsNotTaken`.
    """
    if options.key:
        turn_id = yield from idempotency_keys.claim(message.workspace_id, options.key)
        if turn_id:
            record, is_found = yield from run_again_or_find(
                message.workspace_id, turn_id, message.account, owner_id
            )
            return AcceptedTurn(record, is_replayed=is_found)
    if options.conversation:
        yield from conversations.begin(
            message.workspace_id, message.session_id, message.user_id, options.conversation
        )
    accepted = yield from _accept_new(message, options, owner_id, cache)
    if options.key:
        yield [idempotency_keys.link_turn_stmt(accepted.record, options.key)]
    return accepted


def _accept_new(
    message: NewMessage, options: TurnOptions, owner_id: UUID, cache: TurnCache
) -> TransactionScript[AcceptedTurn]:
    now = utc_now()
    session = {"workspace_id_": message.workspace_id, "session_id_": message.session_id}
    cached = cache.histories.get((message.workspace_id, message.session_id))
    allocated, rows = yield [
        turn_statements.ALLOCATE_SEQ(now=now, **session),
        turn_statements.HISTORY_AND_WAITING(**session, after_=cached[-1].seq if cached else 0),
    ]
    last_seq, agent_id, user_id, version, archived_at = allocated[0] if allocated else _NO_PLACES
    if agent_id is None or message.user_id not in {None, user_id}:
        raise session_not_found()
    if archived_at:
        raise AgentArchived("The session's agent is archived: it takes no new messages.")
    if cached and not _continues(cached, rows):
        cached = ()
        rows = yield from fetch_one(turn_statements.HISTORY_AND_WAITING(**session, after_=0))
    waiting = rows[0][-1] if rows else 0  # a session without messages has no turns
    version = options.agent_version or version
    persona = yield from load_persona((message.workspace_id, agent_id, version), cache.personas)
    interrupt_id, interrupted_status = None, None
    if waiting:
        interrupt_id, interrupted_status = yield from _queue_or_refuse(message, options.on_busy)
    newer = read_history(rows)
    if options.conversation or options.request.is_own:
        if options.request.tools and persona.tools is not None:
            raise tools_not_taken()
        persona = persona_of_request(persona, options.request)
    schema_text = _schema_text(persona, options, message.output)
    question = _question(message, last_seq - 1, options.parts)
    require_room(persona, message.account.context_tokens, question, schema_text)
    history = (*(*cached, *newer)[-LOADED_MESSAGES:], question)
    if options.conversation and not waiting:
        conversations.require_results(history, options.conversation, options.parts)
    record = TurnRecord(
        workspace_id=message.workspace_id,
        id=message.turn_id,
        session_id=message.session_id,
        modality=message.modality,
        status=TurnStatus.QUEUED if waiting else TurnStatus.IN_PROGRESS,
        attempt=1,
        user_message_id=options.user_message_id or message.user_message_id,
        message_id=message.message_id,
        user_seq=last_seq - 1,
        created_at=now,
        persona=persona,
        history=() if waiting else history,
        was_queued=bool(waiting),
        reservation=receipts.estimate_reservation(
            message, persona, history, now, waiting, user_id, schema_text
        ),
        agent_id=agent_id,
        key_id=message.account.key_id,
        user_id=message.account.user_id or user_id,
        request=_turn_request(persona, options, message.account, user_id, last_seq),
        output=message.output,
    )
    stored = _stored_turn(record) | {
        "agent_id": record.agent_id,
        "key_id": record.key_id,
        "user_id": record.user_id,
        "request": record.request.to_json() if record.request else None,
        **receipts.reserved_columns(record.reservation),
    }
    if waiting:
        inserted_turn = turn_statements.INSERT_QUEUED_TURN(**stored, owner_id=None, started_at=None)
    else:
        inserted_turn = turn_statements.INSERT_LIVE_TURN(
            **stored, owner_id=owner_id, started_at=now, lease_end_=now + LEASE
        )
    inserted_messages = turn_statements.INSERT_MESSAGES(**_stored_messages(record, message.content))
    yield from budgets.reserve(
        message.account, record.reservation, [inserted_turn, inserted_messages]
    )
    if options.parts:
        yield from file_uses.use_in_message(record, options.parts)
    settled = immutable_prefix(cached, newer)
    return AcceptedTurn(
        record,
        interrupt_id=interrupt_id,
        interrupts_waiting=interrupted_status is TurnStatus.REQUIRES_ACTION,
        settled=settled,
    )


def _continues(cached: Sequence[HistoryMessage], rows: Rows) -> bool:
    """Return whether `rows`, newest first, directly follow the cached messages.

    They do not after a backup was restored, or if other servers stored more than one load returns.
    """
    return bool(rows) and rows[-1][0] == cached[-1].seq + 1


def load_persona(key: PersonaKey, personas: PersonaCache) -> TransactionScript[Persona]:
    """Return the persona of an agent version, from the cache or the database.

    Raises `VersionNotFound`.
    """
    cached = personas.get(key)
    if cached:
        return cached
    workspace_id, agent_id, version = key
    rows = yield from fetch_one(
        turn_statements.PERSONA(workspace_id_=workspace_id, agent_id_=agent_id, version_=version)
    )
    if not rows:
        raise VersionNotFound(f"The agent has no version {version}.")
    persona = yield from read_persona(workspace_id, rows[0])
    personas.put(key, persona)
    return persona


def _question(message: NewMessage, seq: int, parts: Sequence[InputPart]) -> HistoryMessage:
    is_text = message.modality is Modality.TEXT
    status = MessageStatus.COMPLETED if is_text else MessageStatus.IN_PROGRESS
    question = HistoryMessage(seq, Role.USER.value, status.value, message.content)
    if parts:
        question = question._replace(parts=stored_parts(parts))
    return question


def _schema_text(persona: Persona, options: TurnOptions, output: Modality) -> str:
    """Return the schema of the answer, empty for plain text, and the caller's tools.

    Raises `SpeechNotNamed` where nothing says what of it is read aloud.
    """
    chosen = options.answer_format
    schema = schema_of_answer(persona, chosen)
    tools = orjson.dumps(options.request.tools).decode() if options.request.tools else ""
    if schema is None:
        return tools
    if output is Modality.VOICE and not (chosen.speak if chosen else persona.output_speak):
        raise SpeechNotNamed(
            "The answer is JSON, and nothing says what of it is read aloud: set "
            "`response_format.speak` or the agent's `output_speak` to a JSON Pointer, or ask for "
            "the answer as text."
        )
    return orjson.dumps(schema).decode() + tools


def _turn_request(
    persona: Persona, options: TurnOptions, account: Account, user_id: str | None, last_seq: int
) -> TurnRequest | None:
    """Return what later calls of the model need; `None` for an agent that needs one call only."""
    given, conversation = options.request, options.conversation
    is_plain = persona.tools is None and persona.output_schema is None
    is_own = conversation is not None or given.is_own
    if is_plain and options.answer_format is None and not is_own:
        return None
    earlier = len(conversation.earlier) if conversation else 0
    return replace(
        given,
        bucket_limits=reservations.stored_limits(account.budgets(user_id)),
        answer_format=options.answer_format,
        first_seq=last_seq - 1 - earlier if earlier and not given.first_seq else given.first_seq,
    )


def _stored_turn(record: TurnRecord) -> dict[str, Any]:
    return {
        "workspace_id": record.workspace_id,
        "id": record.id,
        "session_id": record.session_id,
        "agent_version": record.persona.version,
        "modality": record.modality,
        "status": record.status,
        "user_message_id": record.user_message_id,
        "message_id": record.message_id,
        "user_seq": record.user_seq,
        "created_at": record.created_at,
    }


def _stored_messages(record: TurnRecord, content: str) -> dict[str, Any]:
    is_text = record.modality is Modality.TEXT
    return {
        "workspace_id": record.workspace_id,
        "session_id": record.session_id,
        "turn_id": record.id,
        "modality": record.modality,
        "output": record.output,
        "created_at": record.created_at,
        "user_message_id": record.user_message_id,
        "user_seq": record.user_seq,
        "user_status": MessageStatus.COMPLETED if is_text else MessageStatus.IN_PROGRESS,
        "content": content,
        "message_id": record.message_id,
        "seq": record.user_seq + 1,
    }


def _queue_or_refuse(
    message: NewMessage, on_busy: BusyPolicy
) -> TransactionScript[tuple[UUID | None, TurnStatus | None]]:
    """Apply the busy policy; return the turn to be interrupted and its status, if there is one."""
    unsettled = yield from fetch_one(
        UNSETTLED_IDS(workspace_id_=message.workspace_id, session_id_=message.session_id)
    )
    ((first_id, first_status), *_) = unsettled
    if on_busy is BusyPolicy.REJECT:
        busy = SessionBusy("A turn of this session is not finished.")
        busy.extensions["active_turn_id"] = str(first_id)
        raise busy
    if len(unsettled) > QUEUE_LIMIT:
        raise SessionQueueFull(
            f"{QUEUE_LIMIT} turns wait in this session already.", retry_after_seconds=2
        )
    if on_busy is not BusyPolicy.INTERRUPT:
        return None, None
    yield from request_cancel(message.workspace_id, first_id)
    return first_id, first_status


def request_cancel(
    workspace_id: UUID, turn_id: UUID, played_ms: int | None = None
) -> TransactionScript[None]:
    """Request that the server that runs the turn cancels it; `played_ms` of audio were played."""
    turn = {"workspace_id_": workspace_id, "turn_id_": turn_id}
    yield [_REQUEST_CANCEL(**turn, now=utc_now(), cancel_played_ms=played_ms)]


def _request_cancel_stmt(_dialect: Dialect) -> Update:
    return (
        update(turns)
        .where(is_turn(), text(LIVE))
        .values(cancel_requested_at=bindparam("now"), **same_named_parameters("cancel_played_ms"))
    )


_REQUEST_CANCEL = PreparedStatement(_request_cancel_stmt)

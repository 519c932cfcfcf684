"""Start the stored turn that a request of OpenAI's API asks for, in its session."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

from app.core.database import Database
from app.core.security import Caller, Forbidden
from app.core.value_objects import value_object
from app.http.openai_errors import InvalidParameter
from app.models import BusyPolicy, MessageStatus, Role, Session, Turn, new_id
from app.routers.agent_names import agent_of
from app.routers.openai.attachments import checked_lines
from app.routers.openai.ids import CONVERSATION, RESPONSE, our_id
from app.routers.openai.posted_messages import posted_messages, split_question
from app.services import crud
from app.services.turns import (
    LiveTurn,
    RequestKey,
    TurnEngine,
    TurnOptions,
    TurnRequest,
    idempotency_keys,
)
from app.services.turns.context.prompt import conversation_lines
from app.services.turns.errors import ConversationMoved
from app.services.turns.parts import InputPart, stored_parts
from app.services.turns.records import HistoryMessage
from app.services.turns.requests import Conversation, OpenedSession
from app.services.turns.storage.turn_rows import load_history
from app.services.usage import StorageMeter
from app.services.usage.storage import size_of

_MOST_TRIES = 3
ON_BUSY = b"x-on-busy"


@value_object(frozen=True, slots=True)
class Placement:
    """The session of a turn."""

    session_id: UUID
    opens: OpenedSession | None = None
    """`None` where it exists."""
    last_seq: int | None = None
    """Where it must stand; `None` for wherever it is."""
    is_fork: bool = False
    """True where it was made for this turn."""


@value_object(frozen=True, slots=True)
class StoredStart:
    """A request for a stored turn."""

    caller: Caller
    model: str
    request: TurnRequest
    key: RequestKey | None
    on_busy: BusyPolicy
    previous_response_id: str | None = None
    conversation_id: str | None = None
    session_name: str | None = None
    """A session's id, or what the client calls one of its own."""


def busy_policy(headers: Mapping[bytes, bytes]) -> BusyPolicy:
    """Return what `X-On-Busy` asks for. Raises `InvalidParameter`."""
    given = headers.get(ON_BUSY, b"enqueue").decode("latin-1")
    try:
        return BusyPolicy(given)
    except ValueError:
        raise InvalidParameter("X-On-Busy", "It is enqueue, reject or interrupt.") from None


async def start_stored(state: dict[str, Any], start: StoredStart) -> LiveTurn:
    """Place the turn and start it. Raises what starting does, and `InvalidParameter`."""
    lines = await checked_lines(
        state, start.caller, start.model, start.request.prompt or (), is_stored=True
    )
    start = replace(start, request=replace(start.request, prompt=lines))
    tries = 0
    while True:
        tries += 1
        placement = await _place(state, start)
        try:
            live = await _start(state, start, placement)
        except ConversationMoved:
            await _discard(state, start.caller, placement)
            if tries == _MOST_TRIES:
                raise
            continue
        except BaseException:
            await _discard(state, start.caller, placement)
            raise
        if live.record.session_id != placement.session_id:
            await _discard(state, start.caller, placement)
        return live


async def with_previous(
    state: dict[str, Any], previous_response_id: str | None, request: TurnRequest
) -> TurnRequest:
    """Return the request of an unstored turn behind the conversation up to an earlier response."""
    if previous_response_id is None:
        return request
    database: Database = state["database"]
    turn, session = await _previous(database, state["caller"], previous_response_id)
    history = await database.run(load_history, session.workspace_id, session.id, turn.user_seq + 1)
    own = [
        HistoryMessage(
            0, line.role, MessageStatus.COMPLETED, line.content, parts=stored_parts(line.parts)
        )
        for line in posted_messages(request.prompt or ())
    ]
    return replace(request, prompt=tuple(conversation_lines([*history, *own])))


async def _start(state: dict[str, Any], start: StoredStart, placement: Placement) -> LiveTurn:
    turns: TurnEngine = state["turns"]
    earlier, question = split_question(posted_messages(start.request.prompt or ()))
    if placement.opens and not (earlier or question.content or question.parts):
        raise InvalidParameter("input", "It has nothing to answer.")
    says_for_agent = any(line.role is Role.ASSISTANT for line in earlier)
    if start.caller.user_id is not None and says_for_agent and not placement.opens:
        raise Forbidden("End users cannot add answers to a conversation.")
    options = TurnOptions(
        start.on_busy,
        start.key,
        request=start.request,
        answer_format=start.request.answer_format,
        parts=cast("Sequence[InputPart]", question.parts or ()),
        conversation=Conversation(
            agent_of(start.model), placement.opens, earlier, placement.last_seq
        ),
    )
    return await turns.start(start.caller, placement.session_id, question.content, None, options)


async def _place(state: dict[str, Any], start: StoredStart) -> Placement:
    database: Database = state["database"]
    if start.session_name:
        return await _named(database, start, start.session_name)
    if start.conversation_id:
        session_id = our_id(CONVERSATION, start.conversation_id)
        if session_id is None:
            raise crud.session_not_found()
        return Placement(session_id)  # the turn's acceptance asks whether it is the caller's
    if start.previous_response_id is None:
        return Placement(new_id(), OpenedSession(is_hidden=True))
    if start.key and await _is_known(database, start.caller, start.key):
        return Placement(new_id(), OpenedSession(is_hidden=True))  # the key's turn is the answer
    turn, session = await _previous(database, start.caller, start.previous_response_id)
    last_seq = turn.user_seq + 1
    async with database.reading() as db:
        agent = await crud.find_agent(db, start.caller.workspace_id, agent_of(start.model))
    if session.last_seq == last_seq and session.agent_id == agent.id:
        return Placement(session.id, last_seq=last_seq)
    return await _fork(state, start.caller, session, last_seq, agent.id)


async def _named(database: Database, start: StoredStart, name: str) -> Placement:
    """Return the session with an id, or the one that the key calls so for this agent."""
    caller = start.caller
    async with database.reading() as db:
        with suppress(ValueError):
            return Placement((await crud.get_session(db, caller, UUID(name))).id)
        agent = await crud.find_agent(db, caller.workspace_id, agent_of(start.model))
        owner = f"{caller.key_id} {caller.user_id} {agent.id} {name}"
        alias = hashlib.sha256(owner.encode()).hexdigest()
        session = await crud.find_session_by_alias(db, caller, alias)
    return Placement(session.id) if session else Placement(new_id(), OpenedSession(alias=alias))


async def _is_known(database: Database, caller: Caller, key: RequestKey) -> bool:
    if key.sdk_try == 0:
        return False
    found = await database.run(idempotency_keys.find_turn, caller.workspace_id, key)
    return found is not None


async def _previous(database: Database, caller: Caller, response_id: str) -> tuple[Turn, Session]:
    turn_id = our_id(RESPONSE, response_id)
    found = None
    if turn_id is not None:
        with suppress(crud.ResponseNotFound):
            async with database.reading() as db:
                found = await crud.get_response_turn(db, caller, turn_id)
    if found is None:
        raise InvalidParameter(
            "previous_response_id",
            "There is no response with this id.",
            "previous_response_not_found",
        )
    return found.turn, found.session


async def _fork(
    state: dict[str, Any], caller: Caller, session: Session, last_seq: int, agent_id: UUID
) -> Placement:
    database: Database = state["database"]
    storage: StorageMeter = state["storage"]
    async with database.copying(caller.identity) as db:
        size = await crud.size_of_messages(db, caller, session.id, up_to_seq=last_seq)
        await storage.require_room(caller.workspace_id, size + size_of(session), db)
        fork = await crud.fork_session(db, caller, session.id, up_to_seq=last_seq)
        fork.is_hidden, fork.agent_id = True, agent_id
        return Placement(fork.id, last_seq=last_seq, is_fork=True)


async def _discard(state: dict[str, Any], caller: Caller, placement: Placement) -> None:
    """Delete a session that was made for a turn which it does not have."""
    if not placement.is_fork:
        return
    database: Database = state["database"]
    async with database.transaction() as db:
        await crud.delete_session(db, caller, placement.session_id)

"""Continue a conversation that a user interface names: its session, its actions, its next turn."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.security import Caller
from app.core.value_objects import value_object
from app.http.permissions import endpoint_policy
from app.http.tool_resolution import take_action
from app.models import WAITING_STATUSES, CallStatus, Session, ToolCall, TurnStatus
from app.routers.ui_streams.dialect import NOTHING_ANSWERED, Answered
from app.routers.ui_streams.new_input import NewInput, action, invalid_message, read_parts
from app.schemas.tool_calls import ToolCallResolve
from app.services import crud
from app.services.ports import ToolDefinition
from app.services.turns import (
    LiveTurn,
    TurnEngine,
    TurnOptions,
    idempotency_keys,
    tool_call_not_found,
)
from app.services.turns.context.prompt import trailing_calls
from app.services.turns.errors import ToolResultUnknown
from app.services.turns.execution.message_input import MessageInput
from app.services.turns.parts import InputPart, TextPart, ToolResultPart
from app.services.turns.storage.turn_rows import load_history
from app.services.usage import StorageMeter
from app.services.usage.storage import ROW_BYTES, size_of

_MOST_ACTIONS = 128
_MOST_ANSWERS_LOOKED_UP = 20


@value_object(frozen=True, slots=True)
class ContinuedTurn:
    """The turn whose events answer a request."""

    live: LiveTurn
    first_attempt: int = 1
    """The client was shown all events of earlier attempts."""
    answered: Answered = NOTHING_ANSWERED


class Conversations:
    """Continues conversations for one request's caller."""

    def __init__(self, state: dict[str, Any]) -> None:
        """`state` is the request's."""
        self._caller: Caller = state["caller"]
        self._turns: TurnEngine = state["turns"]
        self._database: Database = state["database"]
        self._storage: StorageMeter = state["storage"]
        self._message_input: MessageInput = state["message_input"]

    async def go_on(
        self, name: str, agent: UUID | str | None, new: NewInput, options: TurnOptions
    ) -> ContinuedTurn:
        """Take the actions of a request, and start the turn of its message, if it has one.

        `options` lack the message's parts. Raises `AgentNotFound`, `AgentArchived`, `Forbidden`,
        `SessionNotFound`, `MessageNotFound`, `SessionBusy`, `StorageFull`, `RequestInvalid`, and
        what `take_action`, `MessageInput.prepare` and `TurnEngine.start` do.
        """
        given = await read_parts(new.messages) if new.messages else ()
        if new.actions:
            continued = await self._take_actions(new.actions)
            if not given and not new.results:
                return continued
        session_id = await self._session_id(name, agent)
        if new.rewinds:
            session_id = await self._rewind(name, session_id, new, options)
        elif len(new.messages) > 1:
            given = await read_parts(await self._without_stored(session_id, new))
        content, options = await self._message_input.prepare(
            self._caller, session_id, given, options
        )
        if new.results:
            results = await self._open_results(session_id, new.results, options)
            options = replace(options, parts=(*results, *_text_parts(content, options)))
        return ContinuedTurn(
            await self._turns.start(self._caller, session_id, content, None, options)
        )

    async def own_tools(
        self, agent: UUID | str | None, tools: tuple[ToolDefinition, ...]
    ) -> tuple[ToolDefinition, ...]:
        """Return the tools that a request brings itself: none where the agent has them all.

        An agent with tools takes no others. Raises `AgentNotFound` and `RequestInvalid`.
        """
        async with self._database.reading() as db:
            found = await crud.find_agent(db, self._caller.workspace_id, agent or "")
            names = await crud.client_tool_names(db, found)
        if all(tool.name in names for tool in tools):
            return ()
        if found.tools:
            raise invalid_message(
                "The run has a tool that the agent does not have, and the agent has others: make a "
                "tool of the kind `client` with its name, and give it to the agent."
            )
        return tools

    async def _open_results(
        self, session_id: UUID, results: Sequence[ToolResultPart], options: TurnOptions
    ) -> Sequence[ToolResultPart]:
        """Return the results that the newest answer waits for. Raises `ToolResultUnknown`."""
        if await self._is_known(options):
            return results
        async with self._database.reading() as db:
            session = await crud.get_session(db, self._caller, session_id)
        workspace_id = self._caller.workspace_id
        history = await self._database.run(load_history, workspace_id, session_id, session.last_seq)
        requested, answered = trailing_calls(history)
        fitting = [part for part in results if part.call_id in requested - answered]
        if not fitting:
            raise ToolResultUnknown(
                "A tool's result has the id of no call in the answer before it."
            )
        return fitting

    async def running_turn(self, name: str) -> LiveTurn | None:
        """Return the turn of a conversation that runs or waits; `None` where there is none."""
        async with self._database.reading() as db:
            unsettled = await crud.unsettled_turns_of_name(db, self._caller, name)
        if not unsettled:
            return None
        with suppress(crud.TurnNotFound):  # its session was deleted meanwhile
            return await self._turns.find(self._caller, unsettled[0])
        return None

    async def stop(self, name: str) -> None:
        """Cancel all turns of a conversation that run, wait or are queued."""
        async with self._database.reading() as db:
            unsettled = await crud.unsettled_turns_of_name(db, self._caller, name)
        await self._cancel(unsettled)

    async def _cancel(self, turn_ids: Sequence[UUID]) -> None:
        """Cancel turns, the last first, so that none begins where one before it ends."""
        for turn_id in reversed(turn_ids):
            with suppress(crud.TurnNotFound):
                await self._turns.cancel(self._caller, turn_id)

    async def _session_id(self, name: str, agent: UUID | str | None) -> UUID:
        found = await self._database.run(crud.find_named_session, self._caller, name, agent)
        if found.session_id:
            return found.session_id
        endpoint_policy(("POST",), "/sessions").check(self._caller)
        await self._storage.require_room(self._caller.workspace_id, 2 * ROW_BYTES)
        async with self._database.transaction() as db:
            session = await crud.create_named_session(db, self._caller, name, found.agent_id)
            return session.id

    async def _take_actions(self, actions: Sequence[tuple[UUID, ToolCallResolve]]) -> ContinuedTurn:
        """Take the actions that calls wait for; others were taken before, or are the server's."""
        if len(actions) > _MOST_ACTIONS:
            raise invalid_message(f"An answer has at most {_MOST_ACTIONS} calls of tools.")
        async with self._database.reading() as db:
            found = [
                (await crud.find_tool_call(db, self._caller, call_id), given)
                for call_id, given in actions
            ]
        calls = [(call, given) for call, given in found if call]
        if not calls:
            raise tool_call_not_found()
        for call, given in calls:
            if call.status in WAITING_STATUSES:
                await take_action(
                    self._turns,
                    self._database,
                    self._storage,
                    self._caller,
                    call.id,
                    _fitting(call, given),
                )
        live = await self._turns.find(self._caller, calls[-1][0].turn_id)
        record = live.record
        still_waits = record.status is TurnStatus.REQUIRES_ACTION
        answered = Answered(
            frozenset(str(call.id) for call, _ in calls),
            frozenset(str(call.id) for call, given in calls if given.decision is None),
        )
        return ContinuedTurn(live, record.attempt + still_waits, answered)

    async def _rewind(
        self, name: str, session_id: UUID, new: NewInput, options: TurnOptions
    ) -> UUID:
        """Return a session that ends with the last answer that the client shows.

        Where messages came after it, that is a fork, which has the name from now on; the session
        before it stays as it was. Turns of what came after it are cancelled.
        """
        if await self._is_known(options):
            return session_id
        async with self._database.reading() as db:
            session = await crud.get_session(db, self._caller, session_id)
            seq = await self._place(db, session, new.answer_ids)
        if seq >= session.last_seq:
            return session.id
        endpoint_policy(("POST",), "/sessions/{session_id}/fork").check(self._caller)
        async with self._database.copying(self._caller.identity) as db:
            size_bytes = await crud.size_of_messages(db, self._caller, session.id, up_to_seq=seq)
            room_bytes = size_bytes + size_of(session) + ROW_BYTES
            await self._storage.require_room(self._caller.workspace_id, room_bytes, db)
            left = await crud.unsettled_turns_of_sessions(
                db, session.workspace_id, [session.id], after_seq=seq
            )
            fork = await crud.fork_session(db, self._caller, session.id, up_to_seq=seq)
            await crud.rename_to(db, self._caller, name, fork)
        await self._cancel(left)
        return fork.id

    async def _is_known(self, options: TurnOptions) -> bool:
        """Tell whether the request came before, so that its turn is there."""
        if options.key is None:
            return False
        workspace_id = self._caller.workspace_id
        found = await self._database.run(idempotency_keys.find_turn, workspace_id, options.key)
        return found is not None

    async def _place(self, db: AsyncSession, session: Session, answer_ids: Sequence[UUID]) -> int:
        """Return the `seq` of the newest of the answers; 0 where there are none."""
        for answer_id in answer_ids[:_MOST_ANSWERS_LOOKED_UP]:
            with suppress(crud.MessageNotFound):
                return await crud.place_of_message(db, self._caller, session, answer_id)
        if answer_ids:
            raise crud.MessageNotFound(
                "The conversation has none of the answers in the request, so that nobody knows "
                "where it goes on."
            )
        return 0

    async def _without_stored(
        self, session_id: UUID, new: NewInput
    ) -> Sequence[Sequence[dict[str, Any]]]:
        """Return the new messages without those that are stored, as of a turn that failed."""
        async with self._database.reading() as db:
            session = await crud.get_session(db, self._caller, session_id)
            try:
                seq = await self._place(db, session, new.answer_ids)
            except crud.MessageNotFound:
                return new.messages
            stored = await crud.texts_after(db, session, seq)
        count = 0
        for text, earlier in zip(new.texts()[:-1], stored, strict=False):
            if text != earlier:
                break
            count += 1
        return new.messages[count:]


def _text_parts(content: str, options: TurnOptions) -> Sequence[InputPart]:
    """Return the parts of a message whose text stands behind something else."""
    if options.parts or not content:
        return options.parts
    return (TextPart(content),)


def _fitting(call: ToolCall, given: ToolCallResolve) -> ToolCallResolve:
    """Return an action as the call wants it: a question is declined, and not denied."""
    if given.decision == "deny" and call.status is CallStatus.AWAITING_ANSWER:
        return action(answer={"action": "decline"})
    return given

"""The session of a line: found or made, with the agent that answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import anyio
from sqlalchemy import select

from app.core.database import Database
from app.core.security import Caller
from app.models import Message, new_id
from app.services import crud
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.items import message_id_of

BUILT_IN_AGENT = "realtime"
"""The name of the agent that answers where a client names none that exists."""
_LOADED_MESSAGES = 1000
_ID_CHARACTERS = len("item_") + 32


@dataclass(slots=True)
class LineSession:
    """The session of one line; it is stored with its first message."""

    database: Database
    caller: Caller
    id: UUID
    agent_id: UUID
    user_id: str | None = None
    """The end user to whom a new session belongs."""
    is_stored: bool = False
    language: str | None = None
    """The agent's, once `find_language` or a turn has found it."""
    _knows_language: bool = False
    _storing: anyio.Lock = field(default_factory=anyio.Lock)

    async def store(
        self,
        messages: Sequence[crud.ImportedMessage] = (),
        history: tuple[int, UUID | None] = (0, None),
    ) -> None:
        """Store the session, if it is not yet, and messages that no turn answers.

        A client that has lost its line may bring the history again: `history` is how many of the
        messages that is, and the id of the answer at its end. It is not stored twice.

        Raises what `crud.create_session` and `crud.append_messages` raise.
        """
        async with self._storing:
            if not self.is_stored:
                async with self.database.transaction() as db:
                    await crud.create_session(
                        db, self.caller, self.agent_id, id=self.id, user_id=self.user_id
                    )
                self.is_stored = True
            length, answer = history
            if await self._has(answer):
                messages = messages[length:]
            if messages:
                async with self.database.transaction() as db:
                    await crud.append_messages(db, self.caller, self.id, messages)

    async def find_language(self) -> str | None:
        """Return the language of the agent, as it was last seen. Raises `AgentNotFound`."""
        if not self._knows_language:
            async with self.database.reading() as db:
                agent = await crud.get_agent(db, self.caller.workspace_id, self.agent_id)
                self.set_language(agent.language)
        return self.language

    def set_language(self, language: str | None) -> None:
        """Take note of the language of the agent."""
        self.language, self._knows_language = language, True

    async def _has(self, message_id: UUID | None) -> bool:
        if message_id is None:
            return False
        async with self.database.reading() as db:
            message = await db.get(Message, (self.caller.workspace_id, message_id))
            return message is not None and message.session_id == self.id

    async def words_of(self, message_id: UUID) -> str:
        """Return the text of a stored message; empty where there is none."""
        async with self.database.reading() as db:
            message = await db.get(Message, (self.caller.workspace_id, message_id))
            return message.content if message else ""

    async def messages_after(self, item: str) -> Sequence[Message]:
        """Return the messages behind an item, oldest first. Raises `LiveInputRefused`."""
        message_id = message_id_of(item[:_ID_CHARACTERS])  # `_1` behind it is a part of the message
        async with self.database.reading() as db:
            seq = await db.scalar(
                select(Message.seq).where(
                    Message.workspace_id == self.caller.workspace_id,
                    Message.session_id == self.id,
                    Message.id == message_id,
                )
            )
            if seq is None:
                raise LiveInputRefused("item_not_found", "The session has no such item.", "after")
            found = await db.scalars(
                select(Message)
                .where(
                    Message.workspace_id == self.caller.workspace_id,
                    Message.session_id == self.id,
                    Message.seq > seq,
                )
                .order_by(Message.seq)
                .limit(_LOADED_MESSAGES)
            )
            return found.all()


async def find_session(
    database: Database, caller: Caller, agent: UUID | str | None, session_id: UUID | None
) -> LineSession:
    """Return the session that a line goes on in, or a new one with the agent that is named.

    A name that is no agent means the workspace's agent `BUILT_IN_AGENT`, which is made at its
    first use, so that clients with a fixed name of a model can be served. Raises
    `SessionNotFound`, `AgentNotFound` and `AgentArchived`.
    """
    if session_id is not None:
        async with database.reading() as db:
            session = await crud.get_session(db, caller, session_id)
            if session.agent_id is None:  # a conversation that has no agent yet
                raise crud.session_not_found()
            return LineSession(
                database, caller, session.id, session.agent_id, session.user_id, is_stored=True
            )
    agent_id = await _agent_of(database, caller.workspace_id, agent)
    return LineSession(database, caller, new_id(), agent_id)


async def _agent_of(database: Database, workspace_id: UUID, agent: UUID | str | None) -> UUID:
    if agent is not None:
        async with database.reading() as db:
            try:
                return (await crud.find_agent(db, workspace_id, agent)).id
            except crud.AgentNotFound:
                if isinstance(agent, UUID) or agent.startswith(crud.SLUG_PREFIX):
                    raise
    async with database.transaction() as db:
        try:
            return (await crud.find_agent(db, workspace_id, crud.SLUG_PREFIX + BUILT_IN_AGENT)).id
        except crud.AgentNotFound:
            return (
                await crud.create_agent(db, workspace_id, name=BUILT_IN_AGENT, system_prompt="")
            ).id

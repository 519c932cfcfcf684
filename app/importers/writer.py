"""Stores what importers read: each agent and each session in a transaction of its own."""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.security import Caller
from app.importers.records import ImportReport, Source, SourceAgent, SourceSession
from app.models import PERSONA_FIELDS, Agent, AgentVersion, Session, utc_now
from app.schemas.chat import AgentCreate
from app.services import crud

_NO_TIME = 0


def stable_id(*names: str, created_at: datetime | None) -> UUID:
    """Return the UUID (version 7) of a row that is imported: the same in each run.

    It sorts by the time of the source, as the ids of all other rows do.
    """
    milliseconds = round(created_at.timestamp() * 1000) if created_at else _NO_TIME
    digest = bytearray(hashlib.sha256("\n".join(names).encode()).digest()[:10])
    digest[0] = 0x70 | digest[0] & 0x0F
    digest[2] = 0x80 | digest[2] & 0x3F
    return UUID(bytes=milliseconds.to_bytes(6, "big") + bytes(digest))


class Writer:
    """Stores agents and sessions in the workspace of `caller`, unless they are there already."""

    def __init__(
        self,
        database: Database,
        caller: Caller,
        report: ImportReport,
        agent_id: UUID | None,
        *,
        dry_run: bool,
    ) -> None:
        """`agent_id` is the agent of all sessions; without it, each source names its own."""
        self._database = database
        self._caller = caller
        self._report = report
        self._agent_id = agent_id
        self._dry_run = dry_run
        self._agents: dict[str, UUID] = {}
        """By the source's id or name."""

    async def store(self, kind: str, source: Source) -> None:
        """Store one record, or count only what would be stored."""
        match source:
            case SourceAgent():
                if self._agent_id is None:
                    await self._store_agent(kind, source)
            case SourceSession():
                await self._store_session(kind, source)

    async def _store_agent(self, kind: str, source: SourceAgent) -> None:
        workspace_id = self._caller.workspace_id
        names = (str(workspace_id), kind, "agent", source.id)
        agent_id = stable_id(*names, created_at=source.created_at)
        if source.id in self._agents:
            return
        if (present := await self._find_agent(source.id)) is not None:  # our own export
            self._agents[source.id] = present
            self._report.present["agents"] += 1
            return
        given = {name: value for name, value in source.persona.items() if value is not None}
        try:
            body = AgentCreate.model_validate({"name": source.name, **given})
        except ValidationError:
            self._report.skip("agents", "whose settings are not valid here")
            return
        self._agents[source.id] = agent_id
        now = source.created_at or utc_now()

        def add(db: AsyncSession) -> None:
            persona = {name: getattr(body, name) for name in PERSONA_FIELDS}
            key = {"workspace_id": workspace_id, "version": 1, "created_at": now}
            db.add(Agent(**key, id=agent_id, updated_at=now, **persona))
            db.add(AgentVersion(**key, agent_id=agent_id, **persona))

        if await self._add_once("agents", Agent, agent_id, add):
            self._report.kept["agents"] += 1

    async def _store_session(self, kind: str, source: SourceSession) -> None:
        if not source.id:
            self._report.skip("sessions", "without an id")
            return
        if not source.messages:
            self._report.skip("sessions", "without messages")
            return
        agent_id = await self._agent_of(source)
        if agent_id is None:
            self._report.skip("sessions", "whose agent is not known: name one with --agent")
            return
        times = [each.created_at for each in source.messages if each.created_at]
        created_at = source.created_at or (min(times) if times else None)
        names = (str(self._caller.workspace_id), kind, "session", source.id)
        session_id = stable_id(*names, created_at=created_at)
        now = created_at or utc_now()
        session = Session(
            workspace_id=self._caller.workspace_id,
            id=session_id,
            agent_id=agent_id,
            user_id=source.user_id,
            title=source.title,
            metadata_={**source.metadata, "imported_from": f"{kind}:{source.id}"},
            last_seq=0,
            created_at=now,
            updated_at=max([now, *times]),
        )

        async def add(db: AsyncSession) -> None:
            db.add(session)
            await db.flush()
            await crud.import_messages(db, self._caller, session, source.messages)

        count = len(source.messages)
        if await self._add_once("sessions", Session, session_id, add):
            self._report.kept["sessions"] += 1
            self._report.kept["messages"] += count
        else:
            self._report.present["messages"] += count

    async def _add_once(
        self, name: str, table: type[Agent | Session], row_id: UUID, add: Callable[..., Any]
    ) -> bool:
        """Add a row in a transaction of its own; return False where it is there already."""
        key = (self._caller.workspace_id, row_id)
        opened = self._database.reading() if self._dry_run else self._database.transaction()
        async with opened as db:
            if await db.get(table, key) is not None:
                self._report.present[name] += 1
                return False
            if not self._dry_run and (adding := add(db)) is not None:
                await adding
        return True

    async def _agent_of(self, source: SourceSession) -> UUID | None:
        """Return the agent of a session: the one of --agent, an imported one, or one of ours."""
        if self._agent_id or source.agent_id is None:
            return self._agent_id
        if source.agent_id not in self._agents:
            found = await self._find_agent(source.agent_id)
            if found is None:
                return None
            self._agents[source.agent_id] = found
        return self._agents[source.agent_id]

    async def _find_agent(self, name: str) -> UUID | None:
        try:
            condition = Agent.id == UUID(name)
        except ValueError:
            condition = Agent.name == name
        query = select(Agent.id).where(Agent.workspace_id == self._caller.workspace_id, condition)
        async with self._database.reading() as db:
            return await db.scalar(query.order_by(Agent.id).limit(1))

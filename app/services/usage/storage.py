"""Limit the bytes that a workspace stores: messages, prompts, metadata, events, sound and files."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, LargeBinary, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.limits import Quota
from app.models import (
    AgentVersion,
    Message,
    Session,
    StoredClip,
    StoredFile,
    StoredRecording,
    TurnEventBatch,
)
from app.services.usage.errors import StorageFull

_FRESH_SECONDS = 60.0
_SHARE_OF_TIME = 100
"""Measuring takes at most a hundredth of the time, however much there is to measure."""
MEGABYTE = 1_000_000


def stored_bytes(column: Any, dialect: str) -> ColumnElement[int]:  # noqa: ANN401  # an attribute
    """Return the size of a text or of bytes; Postgres reads none of them for it."""
    if dialect == "postgresql":
        return func.octet_length(column)
    return func.length(cast(column, LargeBinary))


@dataclass(slots=True)
class _Measure:
    size_bytes: int
    due_at: float
    added_bytes: int = 0
    """Accepted by this server since it was measured."""


class StorageMeter:
    """Measures what a workspace stores, at most once a minute, and adds what comes meanwhile."""

    def __init__(
        self,
        database: Database,
        limit_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit_bytes` of 0 is no limit."""
        self._database = database
        self.limit_bytes = limit_bytes
        self._clock = clock
        self._measures: dict[UUID, _Measure] = {}

    async def require_room(
        self, workspace_id: UUID, more_bytes: int, db: AsyncSession | None = None
    ) -> None:
        """Count `more_bytes` that are about to be stored. Raises `StorageFull`.

        `db` is the transaction to measure in, if one is open.
        """
        if not self.limit_bytes:
            return
        measure = await self._measure(workspace_id, db)
        total = measure.size_bytes + measure.added_bytes + more_bytes
        if total > self.limit_bytes:
            raise self._refusal(measure)
        measure.added_bytes += more_bytes

    async def used_bytes(self, workspace_id: UUID, db: AsyncSession) -> int:
        """Return about how many bytes the workspace stores."""
        measure = await self._measure(workspace_id, db)
        return measure.size_bytes + measure.added_bytes

    async def _measure(self, workspace_id: UUID, db: AsyncSession | None) -> _Measure:
        measure = self._measures.get(workspace_id)
        began = self._clock()
        if measure:
            if began < measure.due_at:
                return measure
            measure.due_at = began + _FRESH_SECONDS  # the others go on with it meanwhile
        if db:
            size_bytes = await _size(db, workspace_id)
        else:
            async with self._database.reading() as own:
                size_bytes = await _size(own, workspace_id)
        took = self._clock() - began
        due_at = began + max(_FRESH_SECONDS, _SHARE_OF_TIME * took)
        measure = self._measures[workspace_id] = _Measure(size_bytes, due_at)
        return measure

    def _refusal(self, measure: _Measure) -> StorageFull:
        limit = self.limit_bytes / MEGABYTE
        error = StorageFull(
            f"The workspace may store {limit:g} MB: delete sessions that are not needed any more.",
            retry_after_seconds=max(1, measure.due_at - self._clock()),
        )
        left = max(0, self.limit_bytes - measure.size_bytes - measure.added_bytes)
        error.quota = Quota(
            "stored_mb", f"{limit:g}", f"{left / MEGABYTE:g}", int(time.time() + _FRESH_SECONDS)
        )
        return error


async def _size(db: AsyncSession, workspace_id: UUID) -> int:
    dialect = db.get_bind().dialect.name
    metadata = (
        func.pg_column_size(Session.metadata_)
        if dialect == "postgresql"
        else func.length(Session.metadata_)
    )
    sizes: tuple[tuple[Any, ColumnElement[int]], ...] = (
        (Message, stored_bytes(Message.content, dialect)),
        (StoredRecording, stored_bytes(StoredRecording.data, dialect)),
        (StoredClip, stored_bytes(StoredClip.mp3, dialect)),
        (AgentVersion, stored_bytes(AgentVersion.system_prompt, dialect)),
        (
            StoredFile,
            StoredFile.size_bytes + func.coalesce(stored_bytes(StoredFile.text, dialect), 0),
        ),
        (TurnEventBatch, stored_bytes(TurnEventBatch.events, dialect)),
        (Session, metadata),
    )
    sums = (
        select(func.coalesce(func.sum(size), 0))
        .where(table.workspace_id == workspace_id)
        .scalar_subquery()
        for table, size in sizes
    )
    row = (await db.execute(select(*sums))).one()
    return sum(map(int, row))

"""Limit the bytes that a workspace stores: all that its conversations, agents and tools are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import (
    ColumnElement,
    Enum,
    LargeBinary,
    Select,
    String,
    bindparam,
    case,
    cast,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.limits import Quota
from app.models import (
    Agent,
    AgentMcpServer,
    AgentTool,
    AgentVersion,
    ApiKey,
    AuditEntry,
    IdempotencyKey,
    KeptToolUsage,
    KeptUsage,
    McpServer,
    McpTool,
    Message,
    Session,
    SessionFile,
    SessionName,
    StoredClip,
    StoredFile,
    StoredRecording,
    StoredSecret,
    Tool,
    ToolCall,
    ToolVersion,
    Turn,
    TurnEventBatch,
    TurnStep,
)
from app.models.base import Base, Json, JsonText
from app.services.usage.errors import StorageFull

_FRESH_SECONDS = 60.0
_SHARE_OF_TIME = 100
"""Measuring takes at most a hundredth of the time, however much there is to measure."""
MEGABYTE = 1_000_000
ROW_BYTES = 300
"""What a row counts beside its texts: ids, times, numbers, and its entries in indexes."""
TURN_BYTES = 5 * ROW_BYTES
"""A turn, its two messages, its events and the key of its request."""
COUNTED: tuple[type[Base], ...] = (
    Agent, AgentMcpServer, AgentTool, AgentVersion, ApiKey, AuditEntry, IdempotencyKey,
    KeptToolUsage, KeptUsage, McpServer, McpTool, Message, Session, SessionFile, SessionName,
    StoredClip, StoredFile, StoredRecording, StoredSecret, Tool, ToolCall, ToolVersion, Turn,
    TurnEventBatch, TurnStep,
)  # fmt: skip
"""Every row that a client can make any number of, and that stays."""
_LONG_TEXT = 200
"""Shorter columns are part of `ROW_BYTES`."""


def stored_bytes(column: Any, dialect: str) -> ColumnElement[int]:  # noqa: ANN401  # an attribute
    """Return the size of a text or of bytes; Postgres reads none of them for it."""
    if dialect == "postgresql":
        return func.octet_length(column)
    return func.length(cast(column, LargeBinary))


def row_bytes(table: type[Base], dialect: str) -> ColumnElement[int]:
    """Return the size of a row of one of the tables in `COUNTED`."""
    size: ColumnElement[int] = literal(ROW_BYTES)
    if table is StoredFile:  # its bytes are in a column, or in the file store
        size += case((StoredFile.in_store, StoredFile.size_bytes), else_=0)
    for column in _long_columns(table):
        is_jsonb = dialect == "postgresql" and isinstance(column.type, Json)
        length = func.pg_column_size(column) if is_jsonb else stored_bytes(column, dialect)
        size += func.coalesce(length, 0)
    return size


def size_of(row: Base) -> int:
    """Return what `row_bytes` returns of a row in memory."""
    mapper = inspect(type(row))
    values = (
        getattr(row, mapper.get_property_by_column(column).key)
        for column in _long_columns(type(row))
    )
    elsewhere = row.size_bytes if isinstance(row, StoredFile) and row.in_store else 0
    return ROW_BYTES + elsewhere + sum(map(_value_bytes, values))


def _long_columns(table: type[Base]) -> list[ColumnElement[Any]]:
    return [column for column in table.__table__.columns if _is_long(column)]


def _is_long(column: ColumnElement[Any]) -> bool:
    kind = column.type
    if isinstance(kind, String):
        return not isinstance(kind, Enum) and (kind.length or _LONG_TEXT) >= _LONG_TEXT
    return isinstance(kind, LargeBinary | Json | JsonText)


def _value_bytes(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bytes):
        return len(value)
    return len(value.encode() if isinstance(value, str) else orjson.dumps(value))


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

    def add(self, workspace_id: UUID, more_bytes: int) -> None:
        """Count what was stored without a question, such as an answer."""
        measure = self._measures.get(workspace_id)
        if measure:
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
    statement = _size_stmt(db.get_bind().dialect.name)
    row = (await db.execute(statement, {"workspace_id": workspace_id})).one()
    return sum(map(int, row))


@cache
def _size_stmt(dialect: str) -> Select[*tuple[Any, ...]]:
    """Return the sums of all tables; to build it takes as long as some requests."""
    sums = (
        select(func.coalesce(func.sum(row_bytes(table, dialect)), 0))
        .where(table.__table__.c.workspace_id == bindparam("workspace_id"))
        .scalar_subquery()
        for table in COUNTED
    )
    return select(*sums)

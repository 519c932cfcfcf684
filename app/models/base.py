"""The base classes and column types of all tables."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

import orjson
from sqlalchemy import JSON, DateTime, Dialect, Enum, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator, TypeEngine
from typing_extensions import override
from uuid_utils.compat import uuid7

from app.core.database import SCHEMA

__all__ = ["Base", "Json", "JsonText", "Record", "UtcDateTime", "new_id", "text_enum", "utc_now"]


def new_id() -> UUID:
    """Return a UUIDv7 (RFC 9562); ids that one process creates sort by time."""
    return uuid7()


def utc_now() -> datetime:
    """Return the current time as an aware datetime in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC, also on SQLite, which stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC, because SQLite stores the clock's digits without their zone."""
        return value.astimezone(UTC) if value and value.tzinfo else value

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Add the time zone to values from SQLite."""
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def text_enum(enum: type[StrEnum], length: int = 16) -> Enum:
    """Return a column type that stores the value as text: a new member needs no migration."""
    return Enum(enum, native_enum=False, length=length, values_callable=_values)


def _values(enum: type[StrEnum]) -> list[str]:
    return [member.value for member in enum]


class Json(TypeDecorator[Any]):
    """JSON, on PostgreSQL as JSONB. `None` is stored as SQL NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    @override
    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return JSONB on PostgreSQL; its dialect is not imported if the database is SQLite."""
        if dialect.name != "postgresql":
            return super().load_dialect_impl(dialect)
        from sqlalchemy.dialects.postgresql import JSONB

        return dialect.type_descriptor(JSONB(none_as_null=True))


class JsonText(TypeDecorator[Any]):
    """JSON as text: the order of an object's keys is kept, which JSONB forgets."""

    impl = String
    cache_ok = True

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Write JSON without whitespace; `None` is stored as SQL NULL."""
        return None if value is None else orjson.dumps(value).decode()

    @override
    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Parse the JSON."""
        return None if value is None else orjson.loads(value)


class Base(DeclarativeBase):
    """The declarative base; it names every constraint, so that migrations can drop it by name."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        },
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime}


class Record(Base):
    """A row of a workspace. Keys begin with `workspace_id`, so that tables can be partitioned."""

    __abstract__ = True

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

"""Values of other systems in the form of ours: texts, times, roles, metadata."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from app.core.storable_text import storable_text
from app.importers.records import ImportReport
from app.models import Role, utc_now
from app.schemas.base import Metadata
from app.services.crud import ImportedMessage

_METADATA = TypeAdapter[dict[str, Any]](Metadata)
_LONGEST_TEXT = 200
_EARLIEST_YEAR, _LATEST_YEAR = 1971, 9998
_ROLES = {"user": Role.USER, "human": Role.USER, "assistant": Role.ASSISTANT, "ai": Role.ASSISTANT}


def short_text(value: object) -> str | None:
    """Return a title, name or user id, cut to the 200 characters that fit; `None` for none."""
    text = storable_text(value).strip()[:_LONGEST_TEXT] if isinstance(value, str) else ""
    return text or None


def moment(value: object) -> datetime | None:
    """Return a time from seconds since 1970 or ISO 8601 (without a zone: UTC), never a future one.

    `None` where it cannot be read.
    """
    try:
        if isinstance(value, str):
            parsed = datetime.fromisoformat(value)
            parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            parsed = datetime.fromtimestamp(value, UTC)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    if not _EARLIEST_YEAR <= parsed.year <= _LATEST_YEAR:
        return None
    return min(parsed, utc_now())


def metadata(value: object, report: ImportReport) -> dict[str, Any]:
    """Return metadata that we can store, else none of it."""
    if not value:
        return {}
    try:
        return _METADATA.validate_python(value)
    except (ValidationError, TypeError, ValueError):
        report.skip("metadata", "not a JSON object of at most 16 KB")
        return {}


def text_of(content: object, report: ImportReport) -> str:
    """Return the text of a content: a string, or a list of parts; other parts are reported."""
    if isinstance(content, str):
        return storable_text(content)
    pieces: list[str] = []
    for part in cast("list[object]", content) if isinstance(content, list) else []:
        if isinstance(part, str):
            pieces.append(part)
            continue
        fields = as_object(part)
        text = fields.get("text")
        if isinstance(text, dict):
            body = as_object(cast("object", text))
            annotations = body.get("annotations")
            report.skip("citations", "of files", len(annotations) if annotations else 0)
            text = body.get("value")
        if isinstance(text, str):
            pieces.append(text)
        else:
            report.skip("parts", f"of type {short_text(fields.get('type')) or 'unknown'}")
    return storable_text("\n\n".join(pieces))


def as_object(value: object) -> dict[str, Any]:
    """Return a JSON object, an empty one for everything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return a JSON array, an empty one for everything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def message(
    role: object, content: object, created_at: object, report: ImportReport
) -> ImportedMessage | None:
    """Return a message as ours; `None`, which is reported, where it has no text or another role."""
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        report.skip("messages", f"with the role {short_text(role) or 'unknown'}")
        return None
    text = text_of(content, report)
    if not text.strip():
        report.skip("messages", "without text")
        return None
    time = moment(created_at)
    if created_at is not None and time is None:
        report.skip("times", "that cannot be read")
    return ImportedMessage(known, text, time)


def sorted_by_time(messages: list[ImportedMessage]) -> list[ImportedMessage]:
    """Return messages oldest first, if all have times; ties stay as they were."""
    times = [each.created_at for each in messages if each.created_at]
    if len(times) < len(messages) or not times:
        return messages
    if times[0] > times[-1]:
        messages.reverse()  # newest first: of equal times the later is the older
    return sorted(messages, key=lambda each: cast("datetime", each.created_at))


def texts(fields: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of these fields that is a text."""
    for name in names:
        if isinstance(value := fields.get(name), str) and value.strip():
            return storable_text(value)
    return None


def skip_model(settings: Mapping[str, Any], report: ImportReport) -> None:
    """Report that an agent's model stays behind: this server may not have it."""
    report.skip("models", "of agents: the server's own is used", bool(settings.get("model")))

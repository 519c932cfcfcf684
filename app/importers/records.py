"""What importers read: agents and conversations of other systems, and the report on them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from app.services.crud import ImportedMessage


class SourceInvalid(Exception):
    """The file is not of the format; the message says where."""


@dataclass(frozen=True, slots=True)
class SourceAgent:
    """An agent of another system; `persona` are columns of ours."""

    id: str
    name: str
    persona: Mapping[str, Any]
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SourceSession:
    """A conversation of another system, its messages in order."""

    id: str
    messages: Sequence[ImportedMessage]
    created_at: datetime | None = None
    agent_id: str | None = None
    """The id of the source's agent, or the name or id of one of ours."""
    user_id: str | None = None
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


Source = SourceAgent | SourceSession


class ImportReport:
    """Counts what was kept, and what was skipped and why, by kind."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.present: Counter[str] = Counter()
        """Stored by an earlier run."""
        self.skipped: Counter[tuple[str, str]] = Counter()
        """By kind and reason."""
        self.read_bytes = 0
        """Of all files, for the progress bar."""

    def skip(self, kind: str, reason: str, count: int = 1) -> None:
        """Count what is not imported."""
        if count:
            self.skipped[kind, reason] += count

    @property
    def counts(self) -> dict[str, int]:
        """The sums, for the audit log."""
        return {**self.kept, "skipped": sum(self.skipped.values())}

    def text(self, *, dry_run: bool) -> str:
        """Return the report as lines of text."""
        verb = "would be imported" if dry_run else "imported"
        lines = [
            f"{kind}: {self.kept[kind]} {verb}, {self.present[kind]} already there"
            for kind in ("agents", "sessions", "messages")
        ]
        if self.skipped:
            lines.append("skipped:")
        for (kind, reason), count in sorted(self.skipped.items()):
            lines.append(f"  {count} {kind}: {reason}")
        return "\n".join(lines) + "\n"

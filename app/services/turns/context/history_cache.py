"""Cache of session histories: messages that cannot change any more are loaded only once.

A turn then loads only the messages after the cached ones, mostly two. The newest message is never
cached, so that each load returns at least one row, whose `seq` shows whether it follows the cache.
"""

import time
from collections.abc import Sequence
from operator import attrgetter
from uuid import UUID

from app.core.value_objects import value_object
from app.models import MessageStatus, Modality, Role
from app.services.turns.context.prompt import LOADED_MESSAGES
from app.services.turns.records import HistoryMessage

SessionKey = tuple[UUID, UUID]
"""Workspace and session."""
History = tuple[HistoryMessage, ...]

_MOST_BYTES = 8 << 20
_MESSAGE_BYTES = 250
"""Memory of a message without its text, in bytes."""
_KEPT_SECONDS = 300.0
_CONTENT = attrgetter("content")
_KIND = attrgetter("modality", "role", "status")
_CHANGING = (MessageStatus.FAILED, MessageStatus.IN_PROGRESS)
_FINAL = frozenset(
    (Modality.TEXT.value, role.value, status.value)
    for role in Role
    for status in MessageStatus
    if role is Role.USER or status not in _CHANGING
)
"""Kinds of messages that cannot change any more.

A failed turn may be restarted with its idempotency key, and the played part of a voice answer may
still be reported.
"""


@value_object(frozen=True, slots=True)
class _Entry:
    messages: History
    size_bytes: int
    used_at: float


class HistoryCache:
    """History prefixes of recently used sessions, up to 8 MB and 5 minutes."""

    def __init__(self) -> None:
        self._entries: dict[SessionKey, _Entry] = {}
        self._size_bytes = 0

    @property
    def entry_count(self) -> int:
        """How many sessions are remembered."""
        return len(self._entries)

    def get(self, session: SessionKey) -> History:
        """Return the cached messages of a session, without gaps, oldest first; else empty."""
        entry = self._entries.get(session)
        return entry.messages if entry else ()

    def put(self, session: SessionKey, settled: History) -> None:
        """Cache the result of `immutable_prefix`.

        Call it only after the transaction that loaded it is committed: it may be rolled back.
        """
        self.discard(session)
        if settled:
            words = sum(map(len, map(_CONTENT, settled)))
            parts = sum([len(line.parts) for line in settled if line.parts])
            size_bytes = words + parts + _MESSAGE_BYTES * len(settled)
            self._entries[session] = _Entry(settled, size_bytes, time.monotonic())
            self._size_bytes += size_bytes
        while self._size_bytes > _MOST_BYTES:
            self.discard(next(iter(self._entries)))

    def discard(self, session: SessionKey) -> None:
        """Remove a session from the cache."""
        entry = self._entries.pop(session, None)
        if entry:
            self._size_bytes -= entry.size_bytes

    async def discard_expired(self) -> None:
        """Remove sessions that were not used for 5 minutes."""
        before = time.monotonic() - _KEPT_SECONDS
        for session, entry in list(self._entries.items()):
            if entry.used_at < before:
                self.discard(session)


def immutable_prefix(before: History, newer: Sequence[HistoryMessage]) -> History:
    """Return the messages to cache: `before`, which was cached, and final ones of `newer`.

    Both are oldest first. The newest message is left out, so that the next load returns a row.
    """
    kinds = map(_KIND, newer[:-1])
    count = next((n for n, kind in enumerate(kinds) if kind not in _FINAL), len(newer) - 1)
    return (*before, *newer[:count])[-LOADED_MESSAGES:] if count > 0 else before

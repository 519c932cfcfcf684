"""Histories that are known already: what is settled for good is loaded once, not for each turn.

A turn then asks for the messages after those, which are mostly two. The newest that is known is
never kept, so that something is always asked for and found: by its number the two fit together.
"""

import time
from collections.abc import Sequence
from operator import attrgetter
from uuid import UUID

from app.core.values import value
from app.models import MessageStatus, Modality, Role
from app.services.turns.prompt import LOADED_MESSAGES, HistoryMessage

SessionKey = tuple[UUID, UUID]
"""Workspace and session."""
History = tuple[HistoryMessage, ...]

_MOST_BYTES = 8 << 20
_MESSAGE_BYTES = 250
"""What a message takes beside its words."""
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
"""What nothing changes any more.

A failed turn may be run again with its key, and of a spoken answer it may yet be told how much was
heard.
"""


@value(frozen=True, slots=True)
class _Beginning:
    messages: History
    size_bytes: int
    used_at: float


class Histories:
    """The beginnings of the sessions that this process answered last; bounded in size and time."""

    def __init__(self) -> None:
        self._known: dict[SessionKey, _Beginning] = {}
        self._size_bytes = 0

    def of(self, session: SessionKey) -> History:
        """Return the session's oldest messages that matter, without a gap; empty where unknown."""
        known = self._known.get(session)
        return known.messages if known else ()

    def keep(self, session: SessionKey, settled: History) -> None:
        """Remember what `settled_for_good` returned.

        Once the transaction that read it is committed: what others wrote in it might be undone.
        """
        self.forget(session)
        if settled:
            words = sum(map(len, map(_CONTENT, settled)))
            size_bytes = words + _MESSAGE_BYTES * len(settled)
            self._known[session] = _Beginning(settled, size_bytes, time.monotonic())
            self._size_bytes += size_bytes
        while self._size_bytes > _MOST_BYTES:
            self.forget(next(iter(self._known)))

    def forget(self, session: SessionKey) -> None:
        """Forget a session, as one that is deleted."""
        known = self._known.pop(session, None)
        if known:
            self._size_bytes -= known.size_bytes

    async def forget_old(self) -> None:
        """Forget those that nobody has gone on with for a while."""
        before = time.monotonic() - _KEPT_SECONDS
        for session, known in list(self._known.items()):
            if known.used_at < before:
                self.forget(session)


def settled_for_good(before: History, newer: Sequence[HistoryMessage]) -> History:
    """Return what is worth keeping of `before`, which is what was kept, and `newer`, oldest first.

    Without the newest, for something must be found where the next turn asks for what came after.
    """
    kinds = map(_KIND, newer[:-1])
    count = next((n for n, kind in enumerate(kinds) if kind not in _FINAL), len(newer) - 1)
    return (*before, *newer[:count])[-LOADED_MESSAGES:] if count > 0 else before

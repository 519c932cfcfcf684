"""Histories that are known already: what is settled for good is loaded once, not for each turn.

A turn then asks for the messages after those, which are mostly two. The newest that is known is
never kept, so that something is always asked for and found: by its number the two fit together.
"""

import time
from collections.abc import Sequence
from itertools import takewhile
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
_CHANGING = frozenset((MessageStatus.FAILED.value, MessageStatus.IN_PROGRESS.value))
_TEXT, _USER = Modality.TEXT.value, Role.USER.value
_CONTENT = attrgetter("content")


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
    return (*before, *takewhile(_is_final, newer[:-1]))[-LOADED_MESSAGES:]


def _is_final(message: HistoryMessage) -> bool:
    """Tell what nothing changes any more.

    A failed turn may be run again with its key, and of a spoken answer it may yet be told how much
    was heard.
    """
    return message.modality == _TEXT and (message.status not in _CHANGING or message.role == _USER)

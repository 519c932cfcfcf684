"""Follow a session: what it is, and its turns as they begin, change and end, on any server.

One query polls all sessions that are followed here (decision 0026). A follower whose session has
changed reads it with its caller's own permissions.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import anyio
from sqlalchemy import and_, select, text, tuple_

from app.core.database import Database, StorageUnavailable
from app.core.database.retries import retry_while_unavailable
from app.core.security import Caller
from app.models import UNSETTLED, Session, Turn
from app.services import crud
from app.services.turns.errors import ServerDraining
from app.services.turns.storage.tables import sessions, turns

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
_SESSIONS_PER_QUERY = 500
_HEARTBEAT_SECONDS = 15.0
_RETRY_SECONDS = 10
"""How long the database may be away before a stream breaks off; less than a heartbeat."""

_Key = tuple[UUID, UUID]
"""Of a workspace and of its session."""


@dataclass(slots=True)
class _Seen:
    """What a follower was told."""

    session: tuple[object, ...] | None = None
    turns: dict[UUID, tuple[object, ...]] = field(default_factory=dict[UUID, tuple[object, ...]])
    since_seq: int = 0
    """Turns from this `user_seq` on may be others than they were."""


class SessionEvents:
    """Lets callers follow sessions. One instance serves the whole process."""

    def __init__(self, database: Database, is_draining: Callable[[], bool]) -> None:
        """`is_draining` tells whether this server shuts down."""
        self._database = database
        self._is_draining = is_draining
        self._followers: dict[_Key, list[asyncio.Event]] = {}
        self._last_states: dict[_Key, frozenset[tuple[object, ...]]] = {}
        self._has_followers = anyio.Event()

    @property
    def followed_count(self) -> int:
        """How many sessions somebody follows here."""
        return len(self._followers)

    @asynccontextmanager
    async def polling(self) -> AsyncGenerator[None]:
        """Poll every 0.25 s while the block runs and sessions are followed."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._poll_all)
            yield
            group.cancel_scope.cancel()

    async def follow(
        self, caller: Caller, session_id: UUID, seconds: float
    ) -> AsyncGenerator[Sequence[Session | Turn]]:
        """Yield the session and its unsettled turns, and then each of them that has changed.

        Yields an empty list after each 15 s in which nothing happened, and ends after `seconds`.
        Raises `SessionNotFound`, also once the caller may not see it any more, `ServerDraining`
        and `StorageUnavailable`.
        """
        seen, ends_at = _Seen(), asyncio.get_running_loop().time() + seconds
        with self._following((caller.workspace_id, session_id)) as changed:
            while True:
                changed.clear()
                news = await retry_while_unavailable(
                    lambda: self._read_news(caller, session_id, seen), _RETRY_SECONDS
                )
                if news:
                    yield news
                left = ends_at - asyncio.get_running_loop().time()
                if left <= 0:
                    return
                if self._is_draining():
                    raise ServerDraining("This server is shutting down.", retry_after_seconds=1)
                try:
                    async with asyncio.timeout(min(left, _HEARTBEAT_SECONDS)):
                        await changed.wait()
                except TimeoutError:
                    yield ()

    async def _read_news(
        self, caller: Caller, session_id: UUID, seen: _Seen
    ) -> Sequence[Session | Turn]:
        async with self._database.reading() as db:
            session = await crud.get_session(db, caller, session_id)
            is_first = seen.session is None
            if is_first:
                seen.since_seq = session.last_seq - 1  # of the last turn, which may be retried
            of_session = and_(
                Turn.workspace_id == session.workspace_id, Turn.session_id == session.id
            )
            # Two queries, for each has an index; a turn that is retried may be an old one.
            unsettled = (await db.scalars(select(Turn).where(of_session, text(UNSETTLED)))).all()
            later = select(Turn).where(of_session, Turn.user_seq >= seen.since_seq)
            found = {turn.id: turn for turn in (*(await db.scalars(later)).all(), *unsettled)}
        news: list[Session | Turn] = []
        state = (session.updated_at, session.last_seq, session.user_id)
        if seen.session != state:
            seen.session = state
            news.append(session)
        in_order = sorted(found.values(), key=lambda turn: turn.user_seq)
        if is_first:
            seen.turns = {turn.id: _state(turn) for turn in in_order if turn not in unsettled}
        news += [turn for turn in in_order if seen.turns.get(turn.id) != _state(turn)]
        seen.turns = {turn.id: _state(turn) for turn in in_order}
        first = min((turn.user_seq for turn in unsettled), default=session.last_seq + 1)
        seen.since_seq = min(first, in_order[-1].user_seq if in_order else first)
        return news

    @contextmanager
    def _following(self, key: _Key) -> Generator[asyncio.Event]:
        changed = asyncio.Event()
        self._followers.setdefault(key, []).append(changed)
        self._has_followers.set()
        try:
            yield changed
        finally:
            self._followers[key].remove(changed)
            if not self._followers[key]:
                del self._followers[key]
                self._last_states.pop(key, None)

    async def _poll_all(self) -> None:
        while True:
            if not self._followers:
                self._has_followers = anyio.Event()
                await self._has_followers.wait()
            await anyio.sleep(POLL_SECONDS)
            keys = list(self._followers)
            try:
                for start in range(0, len(keys), _SESSIONS_PER_QUERY):
                    await self._poll(keys[start : start + _SESSIONS_PER_QUERY])
            except StorageUnavailable:
                logger.debug("the database cannot be reached; followed sessions are polled again")
            except Exception:
                logger.exception("followed sessions could not be looked up")

    async def _poll(self, keys: Sequence[_Key]) -> None:
        of_session = and_(
            turns.c.workspace_id == sessions.c.workspace_id,
            turns.c.session_id == sessions.c.id,
            text(UNSETTLED),
        )
        query = (
            select(
                sessions.c.workspace_id, sessions.c.id,
                sessions.c.updated_at, sessions.c.last_seq,
                turns.c.id, turns.c.status, turns.c.attempt,
            )
            .select_from(sessions.outerjoin(turns, of_session))
            .where(tuple_(sessions.c.workspace_id, sessions.c.id).in_(keys))
        )  # fmt: skip
        states: dict[_Key, set[tuple[object, ...]]] = {key: set() for key in keys}
        async with self._database.reading() as db:
            for workspace_id, session_id, *state in await db.execute(query):
                states[workspace_id, session_id].add(tuple(state))
        for key, found in states.items():
            state = frozenset(found)  # empty if the session was deleted
            if self._last_states.get(key) == state and not self._is_draining():
                continue
            for changed in self._followers.get(key, ()):
                self._last_states[key] = state
                changed.set()


def _state(turn: Turn) -> tuple[object, ...]:
    return turn.status, turn.attempt

"""Delete hidden copies of sessions whose server died before their first turn was stored.

A response that goes on from an earlier one is asked in a copy of its session, which is made in a
transaction of its own. Nobody can name such a copy.
"""

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, exists, select
from sqlalchemy.orm import load_only

from app.core.database import Database
from app.core.database.workspace_scope import workspace_scope
from app.core.security import ADMIN
from app.models import Session, Turn, utc_now
from app.services import crud

_GRACE = timedelta(minutes=5)
"""A turn follows its copy within seconds."""
ROUNDS = 2
"""Of maintenance after a start: what was younger than that in the first round is not any more."""


class AbandonedForks:
    """Deletes them after a start; each round reads the table of sessions once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rounds = 0

    async def discard(self) -> None:
        """Delete what an earlier server left, in the first rounds."""
        if self._rounds == ROUNDS:
            return
        async with self._database.reading() as db:
            query = select(Session).options(load_only(Session.workspace_id, Session.id))
            found = [
                (session.workspace_id, session.id)
                for session in await db.scalars(query.where(_is_abandoned()))
            ]
        for workspace_id, session_id in found:
            caller = replace(ADMIN, workspace_id=workspace_id)
            with workspace_scope(workspace_id):
                async with self._database.transaction() as db:
                    is_it = and_(Session.workspace_id == workspace_id, Session.id == session_id)
                    locked = select(Session.id).where(is_it, _is_abandoned()).with_for_update()
                    if await db.scalar(locked):
                        await crud.delete_session(db, caller, session_id)
        self._rounds += 1


def _is_abandoned() -> ColumnElement[bool]:
    has_turn = exists().where(
        Turn.workspace_id == Session.workspace_id, Turn.session_id == Session.id
    )
    return and_(
        Session.is_hidden,
        Session.forked_from_seq == Session.last_seq,
        Session.agent_id.is_not(None),
        Session.created_at < utc_now() - _GRACE,
        ~has_turn,
    )

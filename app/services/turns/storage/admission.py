"""Whether an upload is worth to be read: what would refuse its turn anyway is told before."""

from uuid import UUID

from sqlalchemy import Dialect, and_, bindparam, select
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.services.crud import AgentArchived, SessionNotFound
from app.services.turns.records import RequestKey
from app.services.turns.storage import idempotency_keys
from app.services.turns.storage.tables import agents, sessions
from app.services.usage import Account, budgets


def check(account: Account, session_id: UUID, key: RequestKey | None) -> TransactionScript[None]:
    """Check that the account may speak in the session, and has something left for today.

    Changes nothing; the turn's acceptance checks again, with what the upload really takes. With a
    key that was used before nothing is paid. Raises `SessionNotFound`, `AgentArchived`,
    `IdempotencyKeyReused`, `UploadsExhausted` or `BudgetExhausted`.
    """
    rows = yield from fetch_one(
        _SESSION(workspace_id_=account.workspace_id, session_id_=session_id)
    )
    if not rows or account.user_id not in {None, rows[0][0]}:
        raise SessionNotFound("There is no such session.")
    if rows[0][1]:
        raise AgentArchived("The session's agent is archived: it takes no new messages.")
    if key and (yield from idempotency_keys.find_turn(account.workspace_id, key)):
        return
    yield from budgets.require_left(account)


def _session_stmt(_dialect: Dialect) -> ClauseElement:
    of_session = and_(
        agents.c.workspace_id == sessions.c.workspace_id, agents.c.id == sessions.c.agent_id
    )
    return (
        select(sessions.c.user_id, agents.c.archived_at)
        .select_from(sessions.join(agents, of_session))
        .where(
            sessions.c.workspace_id == bindparam("workspace_id_"),
            sessions.c.id == bindparam("session_id_"),
        )
    )


_SESSION = PreparedStatement(_session_stmt)

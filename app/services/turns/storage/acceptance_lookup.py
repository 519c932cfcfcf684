"""Find out whether a turn was accepted whose COMMIT had no answer."""

from dataclasses import replace

from app.core.database.transactions import TransactionScript
from app.models import utc_now
from app.services.turns.storage import leases, turn_statements
from app.services.turns.storage.acceptance import AcceptedTurn
from app.services.turns.storage.turn_rows import load_record


def confirm_acceptance(accepted: AcceptedTurn) -> TransactionScript[AcceptedTurn | None]:
    """Return what `accept` returned if it was committed, else `None`.

    Waits for the session's row, which the lost transaction holds until it has ended.
    """
    if accepted.is_replayed:  # nothing had to be stored
        return accepted
    record = accepted.record
    session = {"workspace_id_": record.workspace_id, "session_id_": record.session_id}
    yield [turn_statements.LOCK_SESSION(**session, now=utc_now())]
    row = yield from leases.find_row(record.workspace_id, record.id)
    if row is None or row.attempt < record.attempt:
        return None
    if (row.attempt, row.status) == (record.attempt, record.status):
        return accepted
    current = yield from load_record(row, history=False)
    return replace(accepted, record=current, is_taken_over=True)

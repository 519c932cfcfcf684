"""The bill of a turn whose session was deleted while the turn ran."""

from typing import Any, cast

from sqlalchemy import Dialect, Table
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, upsert
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import KeptUsage
from app.services.turns import receipts
from app.services.turns.records import Progress, TurnRecord
from app.services.turns.storage import leases
from app.services.turns.storage.tables import same_named_parameters

_kept_usage = cast("Table", KeptUsage.__table__)


def bill_deleted_turn(record: TurnRecord, progress: Progress) -> TransactionScript[bool]:
    """Store what a deleted turn used, and settle its reservation; return whether it is deleted.

    The bill has the turn's id, so it is stored once, however often this runs.
    """
    if (yield from leases.find_row(record.workspace_id, record.id)):
        return False
    used = receipts.usage_columns(progress)
    bill: dict[str, Any] = {
        "workspace_id": record.workspace_id,
        "id": record.id,
        "created_at": record.created_at,
        "agent_id": record.agent_id,
        "key_id": record.key_id,
        "user_id": record.user_id,
        "model": progress.model,
        "turns": 1,
        "unpriced_turns": int(used["cost_nanos"] is None),
        "prompt_tokens": used["prompt_tokens"],
        "cached_tokens": used["cached_tokens"],
        "completion_tokens": used["completion_tokens"],
        "speech_in_seconds": used["speech_in_seconds"] or 0,
        "speech_out_characters": used["speech_out_characters"] or 0,
        "cost_nanos": used["cost_nanos"],
    }
    is_new = yield from fetch_one(_KEEP_USAGE(**bill))
    settling = receipts.settle_reservation_stmts(record, progress)
    if is_new and settling:
        yield settling
    return True


def _keep_usage_stmt(dialect: Dialect) -> ClauseElement:
    return (
        upsert(dialect, _kept_usage)
        .values(**same_named_parameters(*_kept_usage.c.keys()))
        .on_conflict_do_nothing()
        .returning(_kept_usage.c.id)
    )


_KEEP_USAGE = PreparedStatement(_keep_usage_stmt)

"""Turns in the background: `Prefer: respond-async` (RFC 7240) does not wait for the answer."""

import re
from typing import Annotated, Any

from fastapi import Header
from starlette.responses import Response

from app.core.database import Database
from app.core.security import Caller
from app.http.idempotency import REPLAYED
from app.http.turn_shape import turn_with_message
from app.schemas.chat import TurnWithMessage
from app.services import crud
from app.services.turns import LiveTurn

_RESPOND_ASYNC = re.compile(rb"(?:^|[,;])\s*respond-async\s*(?:[,;=]|$)", re.IGNORECASE)

PreferHeader = Annotated[
    str | None,
    Header(
        alias="Prefer",
        description="`respond-async` answers 202 with the turn as soon as it is stored; "
        "`GET /turns/{turn_id}?wait_seconds=60` waits for its end.",
    ),
]

ACCEPTED_RESPONSE: dict[str, Any] = {
    "model": TurnWithMessage,
    "description": "The turn runs in the background (`Prefer: respond-async`), or it waits for "
    "somebody to act on a tool call (`status: requires_action`)",
    "headers": {
        "Location": {"schema": {"type": "string"}, "description": "Where the turn is read"},
        "Preference-Applied": {"schema": {"const": "respond-async"}},
    },
}
"""The description of `accepted_response` for OpenAPI."""


def prefers_async(prefer: bytes | None) -> bool:
    """Tell whether the header `Prefer` asks not to wait for the answer."""
    return prefer is not None and _RESPOND_ASYNC.search(prefer) is not None


async def accepted_response(
    database: Database, caller: Caller, live: LiveTurn, *, is_preferred: bool = True
) -> Response:
    """Return 202 with the turn as it is stored, and the address where its answer is read.

    `is_preferred`: the client asked for it; else the turn waits for an action.
    """
    async with database.reading() as db:
        turn, message = await crud.get_turn(db, caller, live.record.id)
        shape = await turn_with_message(db, turn, message)
    headers = {
        "Location": f"/turns/{live.record.id}",
        **({"Preference-Applied": "respond-async"} if is_preferred else {}),
        **({REPLAYED: "true"} if live.is_replayed else {}),
    }
    return Response(shape.model_dump_json(), 202, headers=headers, media_type="application/json")

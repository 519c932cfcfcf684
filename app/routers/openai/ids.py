"""Ids on the wire: a prefix, and the 32 hexadecimal digits of ours."""

import re
from uuid import UUID

RESPONSE, CONVERSATION, COMPLETION = "resp_", "conv_", "chatcmpl-"
_HEX = re.compile(r"[0-9a-f]{32}")
_ITEM = re.compile(r"(?:msg|fc|fco|rs)_([0-9a-f]{32})(?:_([0-9]{1,4}))?")


def wire_id(prefix: str, our_id: UUID) -> str:
    """Return an id as clients see it."""
    return f"{prefix}{our_id.hex}"


def our_id(prefix: str, given: str) -> UUID | None:
    """Return our id; `None` where `given` is none of this kind."""
    digits = given.removeprefix(prefix)
    if not given.startswith(prefix) or not _HEX.fullmatch(digits):
        return None
    return UUID(digits)


def item_id(kind: str, message_id: UUID, place: int) -> str:
    """Return the id of the item at `place` (from 0 on) of a message; `kind` is its prefix."""
    return f"{kind}_{message_id.hex}" + (f"_{place}" if place else "")


def item_place(given: str) -> tuple[UUID, int] | None:
    """Return the message of an item and its place in it; `None` where it is no id of ours."""
    found = _ITEM.fullmatch(given)
    return (UUID(found[1]), int(found[2] or 0)) if found else None

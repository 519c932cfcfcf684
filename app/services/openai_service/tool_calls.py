"""Tool calls in an answer of chat completions: pieces become `ToolCallDelta`s.

Compatible servers differ: indexes are missing or all 0, ids are missing or repeated, arguments
are an object instead of its JSON, and a call comes whole or in pieces.
"""

from typing import Any, cast
from uuid import uuid4

import orjson

from app.core.storable_text import storable_text
from app.services.ports import ToolCallDelta


class ToolCallReader:
    """Numbers the calls of one answer."""

    __slots__ = ("_ids", "_places")

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        """The newest call of each index that the provider uses."""
        self._ids: list[tuple[str, str]] = []
        """Id and name of each call."""

    def read(self, calls: Any) -> list[ToolCallDelta]:  # noqa: ANN401  # JSON
        """Take the `tool_calls` of one message or chunk."""
        if isinstance(calls, dict):
            calls = [calls]
        deltas: list[ToolCallDelta] = []
        for call in cast("list[dict[str, Any]]", calls):
            function: dict[str, Any] = call.get("function") or call
            call_id = storable_text(str(call.get("id") or ""))
            name = storable_text(str(function.get("name") or ""))
            place = self._place(call.get("index"), call_id, name)
            arguments = function.get("arguments")
            if arguments is None:
                text = ""
            elif isinstance(arguments, str):
                text = storable_text(arguments)
            else:
                text = orjson.dumps(arguments).decode()
            known_id, known_name = self._ids[place]
            deltas.append(ToolCallDelta(place, known_id, known_name, text))
        return deltas

    def _place(self, index: Any, call_id: str, name: str) -> int:  # noqa: ANN401  # JSON
        """Return which call a piece belongs to: a new id, or a name after another, begins one."""
        slot = index if isinstance(index, int) else -1
        place = self._places.get(slot)
        if place is None and slot == -1 and self._ids and not name:
            place = len(self._ids) - 1
        if place is not None:
            known_id, known_name = self._ids[place]
            is_new = (call_id and call_id != known_id and bool(name)) or (
                slot == -1 and name and not call_id and bool(known_name)
            )
            if not is_new:
                if name and not known_name:
                    self._ids[place] = (known_id, name)
                return place
        taken = {known for known, _ in self._ids}
        if not call_id or call_id in taken:
            call_id = f"call_{uuid4().hex}"
        self._ids.append((call_id, name))
        self._places[slot] = len(self._ids) - 1
        return len(self._ids) - 1

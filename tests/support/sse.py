"""Reading server-sent events, as strictly as a browser does."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    id: int | None
    type: str
    data: Any
    """Without `at_ms`, which every event of a turn has."""
    at_ms: int | None = None


def parse(lines: Iterable[str]) -> list[Event]:
    """Return the events of a stream; comments are passed over."""
    events: list[Event] = []
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                number = int(fields["id"]) if "id" in fields else None
                data = json.loads(fields["data"])
                events.append(Event(number, fields["event"], data, data.pop("at_ms", None)))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            assert name not in fields
            fields[name] = value
    assert not fields, "the stream ended inside an event"
    return events


def text_of(events: Iterable[Event]) -> str:
    """Return the answer that the events tell."""
    return "".join(event.data["delta"] for event in events if event.type == "output_text.delta")

"""Events as they are kept: many of them for as long as a turn lasts."""

import tracemalloc

from app.services.turns.events import EventType, TurnEvent, make_event, pack, unpack


def test_event_takes_no_more_memory_than_its_words() -> None:
    tracemalloc.start()
    try:
        events = [make_event(n, EventType.TEXT, {"delta": "a few words"}) for n in range(1000)]
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept_bytes / len(events) < 300


def test_events_are_read_as_they_were_stored() -> None:
    events = [
        make_event(1, EventType.CREATED, {"turn_id": "a b"}),
        make_event(2, EventType.TEXT, {"delta": "one\ntwo\u2028"}),
    ]

    assert unpack(pack(events)) == events
    assert events[1] == TurnEvent(2, EventType.TEXT, '{"delta":"one\\ntwo\u2028"}'.encode())

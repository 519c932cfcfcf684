"""The events of a turn: typed values, small in memory, and documented as they are."""

import re
import tracemalloc
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from app.main import app
from app.models import MessageStatus, Modality, Role
from app.services.turns.events import (
    EVENT_VALUES,
    ActionRequested,
    ActionResolved,
    AnswerMessage,
    AudioClip,
    EventType,
    EventValue,
    InputTranscriptDelta,
    InputTranscriptDone,
    OutputTextDelta,
    ReasoningText,
    RequiredAction,
    StepStarted,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallCreated,
    ToolCallFailed,
    ToolCallProblem,
    ToolCallProgress,
    ToolCallStarted,
    TurnCancelled,
    TurnCompleted,
    TurnCreated,
    TurnEvent,
    TurnFailed,
    TurnInProgress,
    TurnProblem,
    TurnQueued,
    TurnRequiresAction,
)
from app.services.turns.records import Usage
from app.services.turns.storage.event_store import pack, unpack

README = Path(__file__).parents[2] / "README.md"
ANSWER = AnswerMessage(
    uuid4(), uuid4(), uuid4(), 2, Role.ASSISTANT, "Hi", None, MessageStatus.COMPLETED,
    Modality.TEXT, datetime(2026, 11, 29, tzinfo=UTC),
)  # fmt: skip
ACTION = RequiredAction(uuid4(), "approval", "refund", "{}", "operator", None)
VALUES: tuple[EventValue, ...] = (
    TurnCreated(uuid4(), uuid4(), uuid4(), uuid4()),
    TurnQueued(),
    TurnInProgress(2),
    InputTranscriptDelta("What"),
    InputTranscriptDone("What time is it?", None),
    OutputTextDelta("one\ntwo\u2028"),
    ReasoningText("Hm."),
    StepStarted(2),
    ToolCallArguments("call_1", "refund", '{"n"'),
    ToolCallCreated(uuid4(), 1, 0, "refund", "http", "{}"),
    ToolCallStarted(uuid4(), 1),
    ToolCallProgress(uuid4(), 1, None, "half"),
    ToolCallCompleted(uuid4(), "completed", "7", 1.5),
    ToolCallFailed(uuid4(), "failed", ToolCallProblem("tool-failed", "No.")),
    ActionRequested(ACTION),
    ActionResolved(uuid4(), "approve", "key:1"),
    TurnRequiresAction([ACTION]),
    AudioClip(0, "Hello.", 0, 700, "SUQz"),
    TurnCompleted(ANSWER, Usage(3, 0, 1, 0.5), {"first_token_ms": 1.5}),
    TurnFailed(TurnProblem("turn-timeout", "The turn took too long", "It did."), retryable=True),
    TurnCancelled(ANSWER),
)


def documented_events() -> dict[str, list[str]]:
    """Return the field names that the README's table of events gives for each type."""
    row = re.compile(r"^\| (`[a-z_.]+`(?:, `[a-z_.]+`)*) \| (.+) \|$", re.MULTILINE)
    return {
        name: re.findall(r"`([a-z_0-9]+)`", what)
        for names, what in row.findall(README.read_text())
        for name in re.findall(r"`([a-z_.]+)`", names)
    }


def test_event_takes_little_more_memory_than_its_words() -> None:
    tracemalloc.start()
    try:
        events = [TurnEvent.of(n, OutputTextDelta("a few words")) for n in range(1000)]
        for event in events:
            assert event.json
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept_bytes / len(events) < 300


def test_every_type_has_one_value_class() -> None:
    assert set(EVENT_VALUES) == set(EventType) == {value.type for value in VALUES}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.type)
def test_values_are_read_as_they_were_stored(value: EventValue) -> None:
    event = TurnEvent.of(7, value)
    (stored,) = unpack(pack([event]))

    assert (stored.number, stored.value) == (7, value)
    assert stored == event


def test_many_events_are_stored_together() -> None:
    events = [TurnEvent.of(number, value) for number, value in enumerate(VALUES, 1)]

    assert unpack(pack(events)) == events


def test_types_of_a_newer_server_are_left_out() -> None:
    first, second, *_ = (TurnEvent.of(number, value) for number, value in enumerate(VALUES, 1))
    newer = b'9 answer.translated {"language": "fr"}'

    assert unpack(b"\n".join([pack([first]), newer, pack([second])])) == [first, second]


@pytest.mark.parametrize("kind", list(EventType))
def test_readme_names_every_field_of_every_event(kind: EventType) -> None:
    documented = documented_events()[kind]

    for field in fields(EVENT_VALUES[kind]):
        assert field.name in documented, f"{kind} has {field.name}, which the README does not name"


def test_openapi_describes_every_event() -> None:
    document = app.openapi()
    stream = document["paths"]["/messages/text"]["post"]["responses"]["200"]["content"]
    schemas = [
        document["components"]["schemas"][option["$ref"].rpartition("/")[2]]
        for option in stream["text/event-stream"]["schema"]["oneOf"]
    ]

    described = {schema["properties"]["event"]["const"]: schema for schema in schemas}
    assert set(described) == {*EventType, "server.draining", "error"}
    for kind in EventType:
        name = described[kind]["properties"]["data"]["contentSchema"]["$ref"].rpartition("/")[2]
        data = document["components"]["schemas"][name]
        assert list(data.get("properties", {})) == [
            *(field.name for field in fields(EVENT_VALUES[kind])), "at_ms"
        ]  # fmt: skip

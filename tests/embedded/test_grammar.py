"""JSON by a schema from the embedded model, and what of a schema its grammar keeps."""

from typing import Any

import orjson
import pytest
from jsonschema_rs import is_valid

from app.services.local_service import LocalChatModel, LocalEngine
from app.services.local_service.grammar import json_grammar
from app.services.ports import ChatFinished, ChatRequest, FinishReason, ResponseFormat, TextDelta
from app.services.prompt_lines import PromptMessage

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "tickets": {"type": "integer", "minimum": 1, "maximum": 9},
        "class": {"enum": ["first", "second"]},
    },
    "required": ["city", "tickets", "class"],
}


def kept(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what the grammar keeps of a schema."""
    head, text = json_grammar(schema).split("%json ")
    assert head == "%llguidance {}\nstart: "
    reduced: dict[str, Any] = orjson.loads(text)
    assert reduced.pop("x-guidance") == {
        "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
    }  # fmt: skip
    return reduced


def object_of(**properties: object) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "string", "format": "date", "title": "x"}, {"type": "string"}),
    ({"type": "array", "minItems": 2, "maxItems": 10**9}, {"type": "array", "minItems": 2}),
    ({"minLength": 10**6, "maxLength": 9}, {"maxLength": 9}),
    ({"oneOf": [{"type": "null"}, {"not": {}}]}, {"anyOf": [{"type": "null"}, {}]}),
    ({"allOf": [{"type": "null"}], "if": True, "then": False}, {}),
    ({"maximum": 1e300, "minimum": 0}, {"minimum": 0}),
    ({"$defs": {"a": {"uniqueItems": True}}}, {"$defs": {"a": {}}}),
    (
        {"items": {"const": 1, "title": "x"}, "prefixItems": [True]},
        {"items": {"const": 1}, "prefixItems": [True]},
    ),
]


@pytest.mark.parametrize(("schema", "expected"), CASES)
def test_grammar_keeps_what_is_known_and_small(
    schema: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert kept(object_of(a=schema))["properties"]["a"] == expected


def test_objects_are_closed_where_nothing_says_that_they_are_open() -> None:
    assert kept(object_of(a=True))["additionalProperties"] is False
    assert "additionalProperties" not in kept(object_of(a=True) | {"required": ["b"]})
    assert "additionalProperties" not in kept(object_of(a=True) | {"$ref": "#/$defs/b"})
    assert "additionalProperties" not in kept({"type": "object"})
    open_object = object_of(a=True) | {"additionalProperties": {"type": "string"}}
    assert kept(open_object)["additionalProperties"] == {"type": "string"}


@pytest.mark.anyio
@pytest.mark.embedded
@pytest.mark.parametrize("schema", [ORDER, {"type": "object", "properties": {"order": ORDER}}])
async def test_embedded_model_writes_what_the_schema_allows(
    engine: LocalEngine, schema: dict[str, Any]
) -> None:
    request = ChatRequest(
        [
            PromptMessage("system", "You sell tickets."),
            PromptMessage("user", "Two to Oslo, please."),
        ],
        temperature=0.0,
        max_output_tokens=100,
        response_format=ResponseFormat("order", schema),
    )

    *deltas, finished = [item async for item in LocalChatModel(engine).stream(request)]

    assert isinstance(finished, ChatFinished)
    assert finished.finish_reason is FinishReason.STOP
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    assert is_valid(schema, orjson.loads(text)), text


@pytest.mark.anyio
@pytest.mark.embedded
@pytest.mark.parametrize(
    "hostile",
    [
        {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
        {"type": "string", "minLength": 10**6},
        {"type": "string", "pattern": "^((a|b){1,400}(c|d){1,400}){1,100}$"},
        {"enum": [f"value-{number:05}" for number in range(40)]},
        {"anyOf": [object_of(**{f"k{number}": {"type": "null"}}) for number in range(40)]},
        {"type": "integer", "minimum": 5, "maximum": 4},
    ],
    ids=["items", "length", "pattern", "enum", "anyOf", "contradiction"],
)
async def test_hostile_schema_ends_and_leaves_the_engine_as_it_was(
    engine: LocalEngine, hostile: dict[str, Any]
) -> None:
    pid = engine.worker_pid
    request = ChatRequest(
        [PromptMessage("user", "Go.")],
        max_output_tokens=20,
        response_format=ResponseFormat("hostile", object_of(a=hostile) | {"required": ["a"]}),
    )

    *_, finished = [item async for item in LocalChatModel(engine).stream(request)]

    assert isinstance(finished, ChatFinished)
    assert engine.worker_pid == pid

"""Tools for the embedded model: one choice through a grammar, results in the user's message."""

from typing import Any

import orjson
import pytest

from app.services.local_service import LocalChatModel, LocalEngine
from app.services.local_service.tool_choice import (
    chosen_call,
    plain_lines,
    question_of,
    tool_choice,
)
from app.services.ports import (
    ChatFinished,
    ChatRequest,
    FinishReason,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
)
from app.services.prompt_lines import (
    TOOL_ROLE,
    PromptAnswer,
    PromptCall,
    PromptLine,
    PromptMessage,
    PromptResult,
)

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"number": {"type": "string", "maxLength": 20}},
    "required": ["number"],
}
LOOK_UP = ToolDefinition("get_order", "Looks up an order by its number.", PARAMETERS)
QUESTION = PromptMessage("user", "Where is order A-17?")
CALLED: list[PromptLine] = [
    QUESTION,
    PromptAnswer("assistant", "", (PromptCall("c1", "get_order", '{"number": "A-17"}'),)),
    PromptResult(TOOL_ROLE, '{"status": "shipped"}', "c1"),
]


def test_choice_offers_each_tool_with_its_arguments_or_none() -> None:
    choice = tool_choice([LOOK_UP], "Hi")

    schema = orjson.loads(choice.grammar.partition("%json ")[2])
    tools = [branch["properties"]["tool"]["const"] for branch in schema["anyOf"]]
    assert tools == ["none", "get_order"]
    arguments = schema["anyOf"][1]["properties"]["arguments"]
    assert arguments == PARAMETERS | {"additionalProperties": False}
    assert (
        "get_order: Looks up an order by its number. Arguments: number"
        in (choice.messages[0]["content"])
    )
    assert choice.messages[-1] == {"role": "user", "content": "Hi"}


def test_tools_beyond_the_room_are_not_offered() -> None:
    tools = [ToolDefinition(f"tool_{number}", "x" * 1000, PARAMETERS) for number in range(20)]

    choice = tool_choice(tools, "y" * 100_000)

    assert sum(len(line["content"]) for line in choice.messages) < 10_000
    assert "tool_4" in choice.grammar
    assert "tool_6" not in choice.grammar


def test_references_are_left_to_whoever_checks_the_arguments() -> None:
    referring: dict[str, Any] = PARAMETERS | {
        "properties": {"number": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {}},
    }
    choice = tool_choice([ToolDefinition("t", "T.", referring)], "Hi")
    assert '"arguments":{"type":"object"}' in choice.grammar


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"tool": "none"}', None),
        ('{"tool": "t", "arguments": {"a": 1}}', ("t", '{"a":1}')),
        ('{"tool": "t", "argu', None),
        ("[]", None),
        ('{"other": 1}', None),
        ("", None),
    ],
)
def test_choice_is_read_and_what_is_cut_off_is_none(
    text: str, call: tuple[str, str] | None
) -> None:
    assert chosen_call(text) == call


def test_results_stand_in_the_users_message() -> None:
    said = PromptAnswer("assistant", "It is on its way.", ())
    lines = plain_lines([PromptMessage("system", "Be brief."), *CALLED, said, QUESTION])

    question = (
        f'{QUESTION.content}\n\nThe result of get_order for this message: {{"status": "shipped"}}'
    )
    assert [(line["role"], line["content"]) for line in lines] == [
        ("system", "Be brief."),
        ("user", question),
        ("assistant", "It is on its way."),
        ("user", QUESTION.content),
    ]
    assert question_of(CALLED) is None
    assert question_of([QUESTION]) == QUESTION.content


@pytest.mark.anyio
@pytest.mark.embedded
async def test_embedded_model_calls_a_tool_or_answers_and_answers_after_a_result(
    engine: LocalEngine,
) -> None:
    model = LocalChatModel(engine)
    first = ChatRequest([QUESTION], temperature=0.0, max_output_tokens=20, tools=[LOOK_UP])
    items = [item async for item in model.stream(first)]

    assert isinstance(items[-1], ChatFinished)
    if items[-1].finish_reason is FinishReason.TOOL_CALLS:  # which the model decides
        (call, _) = items
        assert isinstance(call, ToolCallDelta)
        assert call.name == "get_order"
        assert isinstance(orjson.loads(call.arguments)["number"], str)
    else:
        assert all(isinstance(item, TextDelta) for item in items[:-1])
    assert (items[-1].prompt_tokens or 0) > 50

    second = ChatRequest(CALLED, temperature=0.0, max_output_tokens=20, tools=[LOOK_UP])
    items = [item async for item in model.stream(second)]
    assert isinstance(items[0], TextDelta)
    assert isinstance(items[-1], ChatFinished)
    assert items[-1].finish_reason in {FinishReason.STOP, FinishReason.LENGTH}

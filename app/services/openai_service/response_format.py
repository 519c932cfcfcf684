"""How a model is asked for JSON that a schema allows; compatible servers take less than OpenAI.

`response_format` has three steps, and each model gets the highest that it did not refuse. Where a
server may ignore the field, or takes less than the schema, the schema is in the prompt, too.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from app.services.ports import ResponseFormat
from app.services.prompt_lines import PromptLine, PromptMessage

_SYSTEM = "system"


class FormatLevel(IntEnum):
    """What a model takes as `response_format`, from nothing to all."""

    NOTHING = 0
    JSON_OBJECT = 1
    """`{"type": "json_object"}`."""
    JSON_SCHEMA = 2
    """`{"type": "json_schema"}`."""
    STRICT = 3
    """The same with `"strict": true`, for schemas of the shape that it wants."""

    def below(self, response_format: ResponseFormat) -> "FormatLevel":
        """Return the level to try after a refusal."""
        used = self if response_format.is_strict else min(self, FormatLevel.JSON_SCHEMA)
        return FormatLevel(max(used - 1, 0))


def format_field(response_format: ResponseFormat, level: FormatLevel) -> Mapping[str, Any]:
    """Return the value of the field at a level above `NOTHING`."""
    if level is FormatLevel.JSON_OBJECT:
        return {"type": "json_object"}
    named: dict[str, Any] = {"name": response_format.name, "schema": response_format.schema}
    if level is FormatLevel.STRICT and response_format.is_strict:
        named["strict"] = True
    return {"type": "json_schema", "json_schema": named}


def with_instruction(
    lines: Sequence[PromptLine], response_format: ResponseFormat
) -> list[PromptLine]:
    """Return the prompt with the schema behind the system prompt."""
    words = response_format.instruction
    if lines and lines[0].role == _SYSTEM:
        first = PromptMessage(_SYSTEM, f"{lines[0].content}\n\n{words}")
        return [first, *lines[1:]]
    return [PromptMessage(_SYSTEM, words), *lines]

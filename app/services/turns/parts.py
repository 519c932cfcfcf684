"""The parts of a message: one value class for each type, stored as JSON in `messages.parts`.

A message of plain text has no parts: its words are its `content`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, ClassVar, TypeAlias, cast

import orjson

from app.core.value_objects import value_object
from app.services.ports import TOOL_ROLE, PromptAnswer, PromptCall, PromptLine, PromptResult

ASSISTANT = "assistant"
PARAGRAPH = "\n\n"
"""Between the texts of two steps."""


@value_object(frozen=True, slots=True)
class TextPart:
    """A piece of readable text."""

    type: ClassVar = "text"
    text: str


@value_object(frozen=True, slots=True)
class ReasoningPart:
    """What the model thought aloud: never shown to a model again, and never spoken."""

    type: ClassVar = "reasoning"
    text: str


@value_object(frozen=True, slots=True)
class ToolCallPart:
    """A call of a tool, and its result as the model saw it, byte for byte."""

    type: ClassVar = "tool_call"
    call_id: str
    """The id that the model gave it."""
    name: str
    arguments: str
    status: str
    result: str


@value_object(frozen=True, slots=True)
class RefusalPart:
    """The model's words where it refused to answer."""

    type: ClassVar = "refusal"
    text: str


Part: TypeAlias = TextPart | ReasoningPart | ToolCallPart | RefusalPart
_PARTS: dict[str, type[Part]] = {
    part.type: part for part in cast("tuple[type[Part], ...]", Part.__args__)
}


def encode_parts(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Return the JSON of parts, as the column has it."""
    return [
        {"type": part.type} | {each.name: getattr(part, each.name) for each in fields(part)}
        for part in parts
    ]


def decode_parts(stored: Iterable[dict[str, Any]]) -> list[Part]:
    """Return the parts of a stored message. Unknown types are left out."""
    return [
        _PARTS[part["type"]](**{name: value for name, value in part.items() if name != "type"})
        for part in stored
        if part["type"] in _PARTS
    ]


def has_calls(stored: str | None) -> bool:
    """Tell whether a message's parts, as stored, hold a tool call."""
    return stored is not None and f'"{ToolCallPart.type}"' in stored


def prompt_lines(stored: str, content: str) -> list[PromptLine]:
    """Return an assistant's message as a model is shown it: each call followed by its result.

    `content` is the text that is shown of the message: what was heard of a spoken answer, and
    nothing of one that broke off. It shortens the text behind the last call alone, for what tools
    did stays done, and the model would do it again.
    """
    lines: list[PromptLine] = []
    shown: list[str] = []
    texts: list[str] = []
    calls: list[ToolCallPart] = []

    def close_step() -> None:
        if calls:
            lines.extend(step_lines("".join(texts), calls))
            shown.extend(texts)
        texts.clear()
        calls.clear()

    for part in decode_parts(orjson.loads(stored)):
        if isinstance(part, ToolCallPart):
            calls.append(part)
        elif not isinstance(part, ReasoningPart):
            if calls:
                close_step()
            texts.append(part.text)
    last_words = "" if calls else "".join(texts)
    close_step()
    before = PARAGRAPH.join(shown)
    if not before or content == last_words:  # of an answer in JSON, `content` has the JSON alone
        last_text = content
    elif content.startswith(before + PARAGRAPH):
        last_text = content[len(before + PARAGRAPH) :]
    else:
        last_text = ""
    return [*lines, PromptAnswer(ASSISTANT, last_text, ())] if last_text else lines


def step_lines(text: str, calls: Sequence[ToolCallPart]) -> list[PromptLine]:
    """Return one step as a model is shown it: its answer with the calls, then their results."""
    made = tuple(PromptCall(call.call_id, call.name, call.arguments) for call in calls)
    results = [PromptResult(TOOL_ROLE, call.result, call.call_id) for call in calls]
    return [PromptAnswer(ASSISTANT, text, made), *results]


def shown_texts(lines: Iterable[PromptLine]) -> Iterator[str]:
    """Yield every text in lines of a prompt, arguments of calls too, to estimate their size."""
    for line in lines:
        yield line.content
        if isinstance(line, PromptAnswer):
            for call in line.calls:
                yield call.name
                yield call.arguments

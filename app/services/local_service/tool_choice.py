"""Tools for a model that cannot call them: it chooses one through a grammar, before it answers.

Asked as usual, models this small write calls as prose and call tools for "2 + 2". Here the model is
asked for one small JSON, `{"tool": "none"}` or a tool with its arguments; what the tool answered
goes into the user's message, and the answer is asked without tools.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.core.value_objects import value_object
from app.services.local_service.grammar import json_grammar
from app.services.ports import ToolDefinition
from app.services.prompt_lines import PromptAnswer, PromptLine, PromptResult

Line = dict[str, str]

CHOICE_TOKENS = 400
"""The most tokens of a choice."""
_MOST_CHARACTERS = 6000
"""Of the tools in the prompt; those that are left out are not offered."""
_MOST_QUESTION_CHARACTERS = 3000
_NONE = "none"
_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_EXAMPLES = ("Hi there!", "What is the capital of Spain?", "How much is 7 * 6?")
"""Questions without a tool. Without them the model calls tools for a third of such questions."""


@value_object(frozen=True, slots=True)
class ToolChoice:
    """The prompt and the grammar of a choice."""

    messages: list[Line]
    grammar: str


def tool_choice(tools: Sequence[ToolDefinition], question: str) -> ToolChoice:
    """Return how the model is asked which of `tools` it needs for `question`."""
    offered: list[ToolDefinition] = []
    described: list[str] = []
    for tool in tools:
        names = ", ".join(tool.parameters.get("properties", ()))
        described.append(f"{tool.name}: {tool.description} Arguments: {names or _NONE}")
        if sum(map(len, described)) > _MOST_CHARACTERS:
            described.pop()
            break
        offered.append(tool)
    listed = "\n".join(described)
    instruction = (
        "Choose the tool that the user's message needs, with its arguments, or none.\n"
        f"{listed}\n"
        f"{_NONE}: everything else, such as greetings, general knowledge and calculations."
    )
    messages = [{"role": _SYSTEM, "content": instruction}]
    for example in _EXAMPLES:
        messages += [
            {"role": _USER, "content": example},
            {"role": _ASSISTANT, "content": f'{{"tool": "{_NONE}"}}'},
        ]
    messages.append({"role": _USER, "content": question[:_MOST_QUESTION_CHARACTERS]})
    branches = [_branch(_NONE), *(_branch(tool.name, _arguments(tool)) for tool in offered)]
    return ToolChoice(messages, json_grammar({"type": "object", "anyOf": branches}))


def chosen_call(text: str) -> tuple[str, str] | None:
    """Return name and arguments of the tool in a choice; `None` for none, and for no JSON."""
    try:
        choice: dict[str, Any] = orjson.loads(text)
        name = choice["tool"]
        if name == _NONE:
            return None
        return name, orjson.dumps(choice["arguments"]).decode()
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def plain_lines(lines: Sequence[PromptLine]) -> list[Line]:
    """Return a prompt without calls: what a tool answered stands behind the user's message."""
    plain: list[Line] = []
    names: dict[str, str] = {}
    for line in lines:
        if isinstance(line, PromptResult):
            name = names.get(line.call_id, "A tool")
            result = f"\n\nThe result of {name} for this message: {line.content}"
            _last_of_user(plain)["content"] += result
            continue
        if isinstance(line, PromptAnswer):
            names |= {call.id: call.name for call in line.calls}
            if not line.content:
                continue
        plain.append({"role": line.role, "content": line.content})
    return plain


def question_of(lines: Sequence[PromptLine]) -> str | None:
    """Return what the user says last; `None` where tools have been used for that."""
    if not lines or lines[-1].role != _USER:
        return None
    return lines[-1].content


def _last_of_user(plain: list[Line]) -> Line:
    for line in reversed(plain):
        if line["role"] == _USER:
            return line
    plain.append({"role": _USER, "content": ""})
    return plain[-1]


def _branch(name: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    properties: dict[str, Any] = {"tool": {"const": name}}
    if arguments is not None:
        properties["arguments"] = arguments
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def _arguments(tool: ToolDefinition) -> Mapping[str, Any]:
    """Return the schema of the arguments; references would lead out of their place."""
    has_reference = b'"$ref"' in orjson.dumps(tool.parameters)
    return {"type": "object"} if has_reference else tool.parameters

"""Read a chat completion's request: messages become a prompt, parameters a `TurnRequest`.

Whatever is refused raises `InvalidParameter` with the parameter's name; nothing that changes the
answer is left out in silence.
"""

import re
from collections.abc import Sequence
from typing import Any, cast

from app.http.openai_errors import InvalidParameter
from app.routers.openai.answer_format import answer_format
from app.routers.openai.attachments import GivenLine, given_file
from app.schemas.openai_chat import ChatCompletionCreate
from app.services.ports import ONE_FUNCTION, ChatOptions, ToolDefinition
from app.services.prompt_lines import (
    TOOL_ROLE,
    PromptAnswer,
    PromptCall,
    PromptLine,
    PromptMessage,
    PromptResult,
)
from app.services.turns import TurnRequest
from app.services.turns.parts import PARAGRAPH

_UNSUPPORTED, _MISSING, _VALUE = (
    "unsupported_parameter",
    "missing_required_parameter",
    "unsupported_value",
)
_REFUSED = ("functions", "function_call", "audio", "prediction", "web_search_options")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_PROMPT_ROLES = ("system", "developer")
_LONGEST_ID = 200


def turn_request(body: ChatCompletionCreate, *, continues: bool = False) -> TurnRequest:
    """Return what the request asks of its turn. Raises `InvalidParameter`.

    `continues`: results at the beginning answer calls of the conversation.
    """
    _refuse_unsupported(body)
    messages = [(f"messages[{n}]", message) for n, message in enumerate(body.messages)]
    instructions, prompt = read_messages(messages, "messages", continues=continues)
    tools = tuple(_tool(tool, f"tools[{n}]") for n, tool in enumerate(body.tools or ()))
    tools, may_call, choice = choose_tools(tools, body.tool_choice)
    return TurnRequest(
        prompt=tuple(prompt),
        tools=tools,
        may_call_tools=may_call,
        options=_options(body, choice),
        system_prompt=PARAGRAPH.join(instructions) or None,
        temperature=body.temperature,
        max_output_tokens=body.max_completion_tokens or body.max_tokens,
        answer_format=answer_format(body.response_format, "response_format", "json_schema"),
    )


def _refuse_unsupported(body: ChatCompletionCreate) -> None:
    more = body.model_extra or {}
    for name in _REFUSED:
        if more.get(name) is not None:
            raise InvalidParameter(name, f"`{name}` is not supported.", _UNSUPPORTED)
    if body.n is not None and body.n != 1:
        raise InvalidParameter("n", "`n` must be 1: a turn has one answer.", _UNSUPPORTED)
    if more.get("logprobs") or more.get("top_logprobs"):
        name = "logprobs" if more.get("logprobs") else "top_logprobs"
        raise InvalidParameter(name, "Log probabilities are not supported.", _UNSUPPORTED)
    if "audio" in (more.get("modalities") or ()):
        raise InvalidParameter("modalities", "Answers are text alone.", _UNSUPPORTED)


def _options(body: ChatCompletionCreate, choice: str | None) -> ChatOptions:
    stop = (body.stop,) if isinstance(body.stop, str) else body.stop
    return ChatOptions(
        top_p=body.top_p,
        stop=tuple(stop) if stop else None,
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        reasoning_effort=body.reasoning_effort,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls if body.tools else None,
    )


def read_messages(
    messages: Sequence[tuple[str, dict[str, Any]]],
    whole: str,
    *,
    continues: bool = False,
    may_end_open: bool = False,
) -> tuple[list[str], list[PromptLine]]:
    """Return the texts of system and developer messages, and the other messages as a prompt.

    Each message comes with its place in the request, for errors; `whole` is the place of all.
    `continues`: results at the beginning answer calls of the conversation. `may_end_open`: the
    results of the last calls come later.
    """
    instructions: list[str] = []
    prompt: list[PromptLine] = []
    unanswered: list[str] = []
    for place, message in messages:
        role = message.get("role")
        if unanswered and role != TOOL_ROLE:
            raise _unanswered(place, unanswered)
        if role in _PROMPT_ROLES:
            instructions.append(_text(message, place))
        elif role == "user":
            prompt.append(_user_line(message, place))
        elif role == "assistant":
            line = _assistant_line(message, place)
            prompt.append(line)
            unanswered = [call.id for call in getattr(line, "calls", ())]
        elif role == TOOL_ROLE:
            call_id = message.get("tool_call_id")
            is_first = continues and all(isinstance(line, PromptResult) for line in prompt)
            if not isinstance(call_id, str) or (call_id not in unanswered and not is_first):
                raise InvalidParameter(
                    f"{place}.tool_call_id", "It must be the id of a call in the message before it."
                )
            if not is_first:
                unanswered.remove(call_id)
            prompt.append(PromptResult(TOOL_ROLE, _text(message, place), call_id))
        else:
            raise InvalidParameter(
                f"{place}.role", "It must be system, developer, user, assistant or tool."
            )
    if unanswered and not may_end_open:
        raise _unanswered(whole, unanswered)
    return [text for text in instructions if text], prompt


def _unanswered(place: str, calls: Sequence[str]) -> InvalidParameter:
    return InvalidParameter(
        place,
        f"A message with `tool_calls` must be followed by a tool message for each of them: "
        f"{len(calls)} are missing.",
    )


def _assistant_line(message: dict[str, Any], place: str) -> PromptLine:
    if message.get("function_call") is not None:
        raise InvalidParameter(
            f"{place}.function_call", "`function_call` is not supported.", _UNSUPPORTED
        )
    calls = message.get("tool_calls") or ()
    has_text = message.get("content") is not None
    text = _text(message, place) if has_text else str(message.get("refusal") or "")
    if not calls:
        if not has_text and not text:
            raise InvalidParameter(f"{place}.content", "It is missing.", _MISSING)
        return PromptMessage("assistant", text)
    if not isinstance(calls, list):
        raise InvalidParameter(f"{place}.tool_calls", "It must be a list.")
    items = cast("list[Any]", calls)
    read = tuple(_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(items))
    if len({call.id for call in read}) != len(read):
        raise InvalidParameter(f"{place}.tool_calls", "Each call needs an id of its own.")
    return PromptAnswer("assistant", text, read)


def _call(call: Any, place: str) -> PromptCall:  # noqa: ANN401  # JSON
    given = _object(call)
    if not isinstance(given.get("function"), dict):
        raise InvalidParameter(f"{place}.function", "It is missing.", _MISSING)
    fields = {"id": given.get("id"), **_object(given["function"])}
    call_id = _string(fields.get("id"), f"{place}.id")
    if not 1 <= len(call_id) <= _LONGEST_ID:
        raise InvalidParameter(f"{place}.id", f"It must have 1 to {_LONGEST_ID} characters.")
    return PromptCall(
        call_id,
        _string(fields.get("name"), f"{place}.function.name"),
        _string(fields.get("arguments"), f"{place}.function.arguments"),
    )


def _string(value: Any, place: str) -> str:  # noqa: ANN401  # JSON
    if not isinstance(value, str):
        raise InvalidParameter(place, "It must be a string.")
    return value


def _user_line(message: dict[str, Any], place: str) -> PromptLine:
    content = message.get("content")
    if not isinstance(content, list):
        return PromptMessage("user", _text(message, place))
    parts = [
        (_object(part), f"{place}.content[{number}]")
        for number, part in enumerate(cast("list[Any]", content))
    ]
    files = [given_file(part, of_part) for part, of_part in parts]
    if not any(files):
        return PromptMessage("user", _text(message, place))
    pieces = tuple(
        file or _part_text(part, of_part)
        for file, (part, of_part) in zip(files, parts, strict=True)
    )
    texts = [piece for piece in pieces if isinstance(piece, str)]
    return GivenLine("user", PARAGRAPH.join(texts), pieces)


def _text(message: dict[str, Any], place: str) -> str:
    """Return the text of a message's content: a string, or parts of text."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        raise InvalidParameter(f"{place}.content", "It is missing.", _MISSING)
    if not isinstance(content, list):
        raise InvalidParameter(f"{place}.content", "It must be a string or a list of parts.")
    parts = cast("list[Any]", content)
    return "\n".join(
        _part_text(part, f"{place}.content[{number}]") for number, part in enumerate(parts)
    )


def _part_text(part: Any, place: str) -> str:  # noqa: ANN401  # JSON
    fields = _object(part)
    kind = fields.get("type")
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise InvalidParameter(
            f"{place}.type",
            "Parts are text, and in messages of users also images and files.",
            _VALUE,
        )
    return _string(fields.get(field), f"{place}.{field}")


def choose_tools(
    tools: tuple[ToolDefinition, ...], choice: str | dict[str, Any] | None
) -> tuple[tuple[ToolDefinition, ...], bool, str | None]:
    """Return the tools, whether they may be called, and the choice that is sent on."""
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        raise InvalidParameter("tools", "Each tool needs a name of its own.")
    if choice is None or choice in ("auto", "none"):
        return tools, choice != "none", None
    if not tools:
        raise InvalidParameter("tool_choice", "There are no `tools` to choose from.")
    if choice == "required":
        return tools, True, "required"
    if not isinstance(choice, dict):
        raise InvalidParameter("tool_choice", "It must be auto, none, required or an object.")
    if choice.get("type") == "allowed_tools":
        return _allowed(tools, choice)
    name = _function_name(choice, "tool_choice")
    if name not in names:
        raise InvalidParameter("tool_choice", "It names a tool that is not in `tools`.")
    return tools, True, ONE_FUNCTION + name


def _allowed(
    tools: tuple[ToolDefinition, ...], choice: dict[str, Any]
) -> tuple[tuple[ToolDefinition, ...], bool, str | None]:
    """Leave only the tools that may be called, so that no other one can be."""
    given = _object(choice.get("allowed_tools")) or choice
    listed = given.get("tools")
    if not isinstance(listed, list):
        raise InvalidParameter("tool_choice.allowed_tools.tools", "It is missing.", _MISSING)
    items = cast("list[Any]", listed)
    names = {_function_name(each, "tool_choice.allowed_tools.tools") for each in items}
    allowed = tuple(tool for tool in tools if tool.name in names)
    if len(allowed) != len(names):
        raise InvalidParameter("tool_choice", "It names a tool that is not in `tools`.")
    return allowed, True, "required" if given.get("mode") == "required" else None


def _function_name(choice: Any, place: str) -> str:  # noqa: ANN401  # JSON
    fields = _object(choice)
    name = (_object(fields.get("function")) or fields).get("name")
    if fields.get("type") != "function" or not isinstance(name, str):
        raise InvalidParameter(place, 'It must be {"type": "function", "function": {"name": ...}}.')
    return name


def _object(value: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    """Return a JSON object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _tool(tool: dict[str, Any], place: str) -> ToolDefinition:
    if tool.get("type") != "function":
        raise InvalidParameter(
            f"{place}.type", "Only tools of the type `function` are supported.", _VALUE
        )
    if not isinstance(tool.get("function"), dict):
        raise InvalidParameter(f"{place}.function", "It is missing.", _MISSING)
    return tool_definition(_object(tool["function"]), f"{place}.function")


def tool_definition(fields: dict[str, Any], place: str) -> ToolDefinition:
    """Return a function as a tool. Raises `InvalidParameter`."""
    name, description = fields.get("name"), fields.get("description") or ""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidParameter(f"{place}.name", "It must have 1 to 64 letters, digits, `_` or `-`.")
    if not isinstance(description, str):
        raise InvalidParameter(f"{place}.description", "It must be a string.")
    parameters: Any = fields.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise InvalidParameter(f"{place}.parameters", "It must be a JSON Schema.")
    return ToolDefinition(
        name, description, cast("dict[str, Any]", parameters), fields.get("strict") is True
    )

"""Read a request for a response: input items become a prompt, parameters a `TurnRequest`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.http.openai_errors import InvalidParameter
from app.routers.openai.answer_format import answer_format
from app.routers.openai.chat_request import choose_tools, read_messages, tool_definition
from app.routers.openai.response_object import shown_fields
from app.schemas.openai_responses import ResponseCreate
from app.services.ports import ChatOptions, ToolDefinition
from app.services.prompt_lines import PromptLine
from app.services.turns import TurnRequest

_UNSUPPORTED, _VALUE = "unsupported_parameter", "unsupported_value"
_REFUSED = ("prompt", "top_logprobs")
_PARAGRAPH = "\n\n"
_BEFORE = ("tool", "system", "developer")
"""Roles of what may stand before the result of a call that the conversation has."""


def turn_request(body: ResponseCreate, *, continues: bool = False) -> TurnRequest:
    """Return what the request asks of its turn. Raises `InvalidParameter`.

    `continues`: results at the beginning answer calls of the conversation, as they do where the
    request names one.
    """
    _refuse_unsupported(body)
    continues = continues or bool(body.previous_response_id or body.conversation_id)
    instructions, prompt = _read_input(body, continues=continues)
    if body.instructions:
        instructions.append(body.instructions)
    tools = tuple(_tool(tool, f"tools[{n}]") for n, tool in enumerate(body.tools or ()))
    tools, may_call, choice = choose_tools(tools, body.tool_choice)
    request = TurnRequest(
        prompt=tuple(prompt),
        tools=tools,
        may_call_tools=may_call,
        options=ChatOptions(
            top_p=body.top_p,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            reasoning_effort=body.reasoning.effort if body.reasoning else None,
            tool_choice=choice,
            parallel_tool_calls=body.parallel_tool_calls if tools else None,
        ),
        system_prompt=_PARAGRAPH.join(instructions) or None,
        temperature=body.temperature,
        max_output_tokens=body.max_output_tokens,
        answer_format=answer_format((body.text or {}).get("format"), "text.format"),
    )
    return replace(request, shown=shown_fields(body, request))


def _refuse_unsupported(body: ResponseCreate) -> None:
    if body.previous_response_id and body.conversation_id:
        raise InvalidParameter(
            "conversation", "Send either `previous_response_id` or `conversation`."
        )
    if body.store is False and body.background:
        raise InvalidParameter("background", "A response in the background must be stored.")
    if body.store is False and body.conversation_id:
        raise InvalidParameter(
            "conversation", "A response of a conversation must be stored.", _UNSUPPORTED
        )
    for name in _REFUSED:
        if (body.model_extra or {}).get(name):
            raise InvalidParameter(name, f"`{name}` is not supported.", _UNSUPPORTED)
    allowed = {None, "disabled"} if body.store is False else {None, "auto"}
    if body.truncation not in allowed:
        only = "disabled" if body.store is False else "auto"
        raise InvalidParameter(
            "truncation", f"With this `store` only `{only}` is supported.", _VALUE
        )


def read_items(items: Sequence[dict[str, Any]]) -> list[PromptLine]:
    """Return items that are added to a conversation. Raises `InvalidParameter`."""
    messages = _messages_of(items, "items", continues=True)
    instructions, lines = read_messages(messages, "items", continues=True, may_end_open=True)
    if instructions:
        raise InvalidParameter(
            "items", "System and developer messages belong into `instructions`.", _VALUE
        )
    return lines


def _read_input(body: ResponseCreate, *, continues: bool) -> tuple[list[str], list[PromptLine]]:
    if isinstance(body.input, str):
        return read_messages([("input", {"role": "user", "content": body.input})], "input")
    return read_messages(
        _messages_of(body.input, "input", continues=continues), "input", continues=continues
    )


def _messages_of(
    items: Sequence[dict[str, Any]], whole: str, *, continues: bool
) -> list[tuple[str, dict[str, Any]]]:
    """Return items as messages of chat completions, with their places."""
    messages: list[tuple[str, dict[str, Any]]] = []
    for index, item in enumerate(items):
        place = f"{whole}[{index}]"
        kind = item.get("type", "message")
        if kind == "message":
            messages.append((place, item))
        elif kind == "function_call":
            _add_call(messages, item, place)
        elif kind == "function_call_output":
            messages.append((place, _result(item, place, messages, continues=continues)))
        elif kind != "reasoning":  # which no model is shown again
            raise InvalidParameter(
                f"{place}.type",
                "Items are of the type message, function_call, function_call_output, reasoning or "
                "item_reference.",
                _VALUE,
            )
    return messages


def _result(
    item: dict[str, Any],
    place: str,
    messages: list[tuple[str, dict[str, Any]]],
    *,
    continues: bool,
) -> dict[str, Any]:
    """Return the output of a call as a message; the call must be among the items before it.

    `continues`: where there is none before it, the conversation has the call.
    """
    calls = [call for _, message in messages for call in message.get("tool_calls", ())]
    is_first = continues and all(message.get("role") in _BEFORE for _, message in messages)
    if not isinstance(item.get("call_id"), str) or (
        not is_first and item["call_id"] not in {call["id"] for call in calls}
    ):
        raise InvalidParameter(f"{place}.call_id", "It must be the id of a call before it.")
    if item.get("output") is None:
        raise InvalidParameter(f"{place}.output", "It is missing.", "missing_required_parameter")
    return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}


def _add_call(messages: list[tuple[str, dict[str, Any]]], item: dict[str, Any], place: str) -> None:
    """Add a call to the answer that it is part of; a call behind another one joins it."""
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise InvalidParameter(f"{place}.{name}", "It must be a string.")
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    last = messages[-1][1] if messages else {}
    if "tool_calls" in last and last.get("type") == "function_call":
        last["tool_calls"].append(call)
    elif last.get("role") == "assistant" and "tool_calls" not in last:
        joined = {**last, "type": "function_call", "tool_calls": [call]}
        messages[-1] = (messages[-1][0], joined)
    else:
        answer = {"role": "assistant", "type": "function_call", "tool_calls": [call]}
        messages.append((place, answer))


def _tool(tool: dict[str, Any], place: str) -> ToolDefinition:
    if tool.get("type") != "function":
        raise InvalidParameter(
            f"{place}.type", "Only tools of the type `function` are supported.", _VALUE
        )
    return tool_definition(tool, place)

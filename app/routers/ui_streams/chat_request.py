"""Read what is new in a request of the AI SDK's `useChat`."""

from collections.abc import Iterable, Sequence
from typing import Any, cast
from uuid import UUID

from app.routers.ui_streams.new_input import (
    NewInput,
    action,
    call_id_of,
    file_part,
    invalid_message,
    text_part,
)
from app.schemas.tool_calls import ToolCallResolve
from app.schemas.ui_streams import UIChatCreate

_USER, _ASSISTANT = "user", "assistant"
_REGENERATE = "regenerate-message"
_TOOL_PREFIX, _DYNAMIC_TOOL, _DATA_PREFIX = "tool-", "dynamic-tool", "data-"


def new_input(body: UIChatCreate) -> NewInput:
    """Return what the request adds to its chat. Raises `RequestInvalid`."""
    messages = body.messages
    is_regenerated = body.trigger == _REGENERATE
    if is_regenerated and messages and messages[-1].get("role") == _ASSISTANT:
        messages = messages[:-1]
    if not messages:
        raise invalid_message("There is no message to answer.")
    if messages[-1].get("role") == _ASSISTANT:
        actions = list(_actions(_parts(messages[-1])))
        if not actions:
            raise invalid_message(
                "The last message is an answer, without an output of a tool or a response to an "
                "approval: there is nothing to answer."
            )
        return NewInput(actions=actions)
    new: list[Sequence[dict[str, Any]]] = []
    start = len(messages)
    while start and messages[start - 1].get("role") != _ASSISTANT:
        start -= 1
        new.insert(0, _user_parts(messages[start]))
    is_edited = body.message_id is not None and messages[-1].get("id") == body.message_id
    return NewInput(
        messages=new,
        answer_ids=list(_answer_ids(messages[:start])),
        rewinds=is_regenerated or is_edited,
    )


def _answer_ids(messages: Sequence[dict[str, Any]]) -> Iterable[UUID]:
    for message in reversed(messages):
        answer_id = call_id_of(message.get("id"))
        if answer_id and message.get("role") == _ASSISTANT:
            yield answer_id


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    parts: object = message.get("parts")
    if not isinstance(parts, list):
        raise invalid_message("A message has no list of `parts`.")
    items = cast("list[object]", parts)
    if not all(isinstance(item, dict) for item in items):
        raise invalid_message("The parts of a message are objects.")
    return cast("list[dict[str, Any]]", items)


def _user_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    if message.get("role") != _USER:
        raise invalid_message("New messages are the user's: the agent has its own system prompt.")
    parts: list[dict[str, Any]] = []
    for part in _parts(message):
        kind = part.get("type")
        if kind == "text":
            parts.append(text_part(part.get("text", "")))
        elif kind == "file":
            parts.append(file_part(str(part.get("url")), str(part.get("mediaType"))))
        elif not str(kind).startswith(_DATA_PREFIX):
            raise invalid_message("The parts of the user's messages are of type `text` or `file`.")
    return parts


def _actions(parts: Iterable[dict[str, Any]]) -> Iterable[tuple[UUID, ToolCallResolve]]:
    """Yield what an answer's parts say about calls of tools; most of it is known already."""
    for part in parts:
        kind = str(part.get("type"))
        call_id = call_id_of(part.get("toolCallId"))
        if call_id is None or not (kind == _DYNAMIC_TOOL or kind.startswith(_TOOL_PREFIX)):
            continue
        match part.get("state"):
            case "output-available":
                yield call_id, action(output=part.get("output"))
            case "output-error":
                yield call_id, action(error=str(part.get("errorText") or "It failed.")[:16_384])
            case "approval-responded":
                yield call_id, decision_of(part.get("approval"))
            case _:
                pass


def decision_of(approval: object) -> ToolCallResolve:
    """Return the decision that a response to an approval means: `approved`, and a `reason`."""
    given = cast("dict[str, Any]", approval) if isinstance(approval, dict) else {}
    if given.get("approved") is True:
        return action(decision="approve")
    reason = given.get("reason")
    return action(decision="deny", **({"reason": reason} if reason else {}))

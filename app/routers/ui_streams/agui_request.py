"""Read what is new in a run of AG-UI."""

from collections.abc import Iterable, Sequence
from typing import Any, cast
from uuid import UUID

from app.http.openai_errors import InvalidParameter
from app.routers.openai.chat_request import tool_definition
from app.routers.ui_streams.chat_request import decision_of
from app.routers.ui_streams.new_input import (
    NewInput,
    action,
    call_id_of,
    file_part,
    invalid_message,
    text_part,
)
from app.schemas.tool_calls import ToolCallResolve
from app.schemas.ui_streams import AgUiResume, AgUiRun
from app.services.ports import ToolDefinition
from app.services.turns.parts import ToolResultPart

_USER, _TOOL = "user", "tool"
_PASSED_OVER = {"reasoning", "activity"}
_LONGEST_ERROR = 16_384


def new_input(body: AgUiRun) -> NewInput:
    """Return what the run adds to its thread. Raises `RequestInvalid`."""
    messages = body.messages
    new: list[Sequence[dict[str, Any]]] = []
    actions: list[tuple[UUID, ToolCallResolve]] = []
    results: list[ToolResultPart] = []
    for message in reversed(messages):
        role = message.get("role")
        if role == _TOOL:
            actions[:0] = _output(message)
            results[:0] = _own_result(message)
        elif role == _USER:
            new.insert(0, _user_parts(message.get("content")))
        elif role == "assistant":
            break
        elif role not in _PASSED_OVER:
            raise invalid_message(
                "New messages are the user's, or results of tools: the agent has its own system "
                "prompt."
            )
    actions += _answers(body.resume or ())
    if not new and not actions and not results:
        raise invalid_message("There is no message to answer.")
    return NewInput(messages=new, actions=actions, results=results)


def tools_of(body: AgUiRun) -> tuple[ToolDefinition, ...]:
    """Return the tools that a run brings. Raises `RequestInvalid`."""
    tools: list[ToolDefinition] = []
    for place, tool in enumerate(body.tools or ()):
        try:
            tools.append(tool_definition(tool, f"tools[{place}]"))
        except InvalidParameter as error:
            raise invalid_message(f"`{error.param}`: {error.detail}") from None
    if len({tool.name for tool in tools}) != len(tools):
        raise invalid_message("Each of `tools` needs a name of its own.")
    return tuple(tools)


def _user_parts(content: object) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [text_part(content)]
    if not isinstance(content, list):
        raise invalid_message("The content of a message is text, or a list of parts.")
    parts: list[dict[str, Any]] = []
    for item in cast("list[object]", content):
        part = _fields(item) or {}
        if part.get("type") == "text":
            parts.append(text_part(part.get("text", "")))
        elif part.get("type") in {"image", "document", "binary"}:
            parts.append(_file(part))
        else:
            raise invalid_message("The parts of a message are of type `text`, `image`, `document`.")
    return parts


def _file(part: dict[str, Any]) -> dict[str, Any]:
    """Return an image or a document; its `source` has a URL, or base64 as `value`."""
    source = _fields(part.get("source")) or part
    media_type = str(source.get("mimeType") or "image/*")
    data = source.get("value") if source.get("type") == "data" else source.get("data")
    if data is not None:
        return file_part(f"data:{media_type};base64,{data}", media_type)
    url = source.get("value") if source.get("type") == "url" else source.get("url")
    return file_part(str(url), media_type)


def _output(message: dict[str, Any]) -> Iterable[tuple[UUID, ToolCallResolve]]:
    """Yield the result of a tool of the client's."""
    call_id = call_id_of(message.get("toolCallId"))
    if call_id is None:
        return
    if message.get("error"):
        yield call_id, action(error=str(message["error"])[:_LONGEST_ERROR])
    else:
        yield call_id, action(output=message.get("content"))


def _own_result(message: dict[str, Any]) -> Iterable[ToolResultPart]:
    """Yield the result of a tool that an earlier run brought: its calls have ids of ours."""
    call_id = message.get("toolCallId")
    if not isinstance(call_id, str) or call_id_of(call_id) is not None:
        return
    content = message.get("error") or message.get("content")
    if not isinstance(content, str):
        raise invalid_message("The content of a tool's message is text.")
    yield ToolResultPart(call_id, content)


def _answers(resume: Sequence[AgUiResume]) -> Iterable[tuple[UUID, ToolCallResolve]]:
    """Yield the answers to interrupts: approvals, and answers to questions."""
    for entry in resume:
        call_id = call_id_of(entry.interrupt_id)
        if call_id is None:
            raise invalid_message("`resume` names an interrupt that no run of this thread had.")
        if entry.status == "cancelled":
            yield call_id, action(decision="deny")
            continue
        fields = _fields(entry.payload)
        if fields is None:
            fields = {"approved": entry.payload}
        if "approved" in fields:
            yield call_id, decision_of(fields)
        else:
            yield call_id, action(answer={"content": fields})


def _fields(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None

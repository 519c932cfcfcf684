"""The dialect of responses: from a turn's event values to numbered events, and to one object.

Pure, as that of chat completions. Items are closed before the last event, and each item that is
closed is exactly as the last event has it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from app.core.value_objects import value_object
from app.routers.openai.chat_frames import DONE
from app.routers.openai.ids import item_id
from app.services.turns.events import (
    EventValue,
    OutputTextDelta,
    ReasoningText,
    ToolCallArguments,
)
from app.services.turns.parts import (
    PARAGRAPH,
    REQUESTED,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
)
from app.services.turns.records import Usage

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_MESSAGE, _REASONING = "message", "reasoning"


@value_object(frozen=True, slots=True)
class ResponseHead:
    """What is known of a response before it begins."""

    message_id: UUID
    """Of the answer; items are named after it."""
    fields: dict[str, Any]
    """All fields of the object but its status, output, error, usage and end."""


@dataclass(slots=True)
class _Item:
    index: int
    id: str
    kind: str
    text: list[str] = field(default_factory=list[str])
    name: str = ""
    call_id: str = ""
    is_open: bool = True


class ResponseEvents:
    """Encodes one response. Each method returns frames; they are sent in the order of the calls."""

    def __init__(self, head: ResponseHead, *, shows_calls: bool) -> None:
        """`shows_calls`: the tools are the caller's own, so that the caller is told of calls."""
        self._head = head
        self._shows_calls = shows_calls
        self._items: list[_Item] = []
        self._calls: dict[str, _Item] = {}
        self._number = 0
        self.shown_after = -1
        """Events up to this number are numbered, and not returned: the client has them."""
        self.response = self._object("in_progress")

    def announce(self, kind: str, status: str) -> bytes:
        """Return the frame of a state before the answer: `kind` without `response.`."""
        self.response = self._object(status)
        return self._state(f"response.{kind}")

    def restart(self, number: int) -> None:
        """Begin anew with an empty answer; the next event has at least the number `number`."""
        self._number = max(self._number, number)
        self._items.clear()
        self._calls.clear()

    def begin(self) -> bytes:
        """Return the first frames."""
        return self._state("response.created") + self._state("response.in_progress")

    def encode(self, values: Iterable[EventValue]) -> bytes:
        """Return the frames of events; empty where they have nothing that clients are shown."""
        return b"".join([self._encode(value) for value in values])

    def complete(self, finish_reason: str | None, usage: Usage, completed_at: int) -> bytes:
        """Return the last frames of an answer that has ended."""
        reason = _INCOMPLETE.get(finish_reason or "") if not self._calls else None
        status = "incomplete" if reason else "completed"
        frames = self._close_all(status)
        self.response = self._object(status) | {
            "incomplete_details": {"reason": reason} if reason else None,
            "completed_at": None if reason else completed_at,
            "output": self.items(status),
            "usage": usage_fields(usage),
        }
        return frames + self._state(f"response.{status}") + DONE

    def items(self, status: str) -> list[dict[str, Any]]:
        """Return the items of what was encoded; the last one has the status `status`."""
        return [_whole(item, self._status(item, status)) for item in self._items]

    def cancel(self, usage: Usage | None) -> bytes:
        """Return the last frames of an answer that was cancelled."""
        frames = self._close_all("incomplete")
        self.response = self._object("cancelled") | {
            "output": self.items("incomplete"),
            "usage": usage_fields(usage) if usage else None,
        }
        return frames + self._state("response.incomplete") + DONE

    def fail(self, error: dict[str, Any]) -> bytes:
        """Return the last frames of an answer that broke off; `error` is as chat has it."""
        frames = self._close_all("incomplete")
        limited = error["error"]["type"] == "rate_limit_error"
        code = "rate_limit_exceeded" if limited else "server_error"
        self.response = self._object("failed") | {
            "output": [_whole(item, "incomplete") for item in self._items],
            "error": {"code": code, "message": error["error"]["message"]},
        }
        return frames + self._state("response.failed") + DONE

    def _encode(self, value: EventValue) -> bytes:
        if isinstance(value, OutputTextDelta):
            opening, item = self._open(_MESSAGE)
            item.text.append(value.delta)
            delta = self._part_event(
                "response.output_text.delta", item, delta=value.delta, logprobs=[]
            )
            return opening + delta
        if isinstance(value, ReasoningText):
            opening, item = self._open(_REASONING)
            item.text.append(value.delta)
            return opening + self._part_event(
                "response.reasoning_text.delta", item, delta=value.delta
            )
        if isinstance(value, ToolCallArguments) and self._shows_calls:
            return self._encode_call(value)
        return b""

    def _encode_call(self, value: ToolCallArguments) -> bytes:
        frames = b""
        item = self._calls.get(value.call_id)
        if item is None:
            frames = self._close_text("completed")
            item = self._add("fc", "function_call")
            item.call_id, item.name = value.call_id, value.name
            self._calls[value.call_id] = item
            frames += self._item_event("response.output_item.added", item, "in_progress")
        if value.delta:
            item.text.append(value.delta)
            frames += self._event(
                "response.function_call_arguments.delta",
                item_id=item.id,
                output_index=item.index,
                delta=value.delta,
            )
        return frames

    def _open(self, kind: str) -> tuple[bytes, _Item]:
        """Return the open item of a kind; where there is none, the frames that open one, too."""
        last = self._items[-1] if self._items else None
        if last and last.kind == kind and last.is_open:
            return b"", last
        frames = self._close_text("completed")
        item = self._add("msg" if kind == _MESSAGE else "rs", kind)
        frames += self._item_event("response.output_item.added", item, "in_progress")
        part = _part(item, "")
        return frames + self._part_event("response.content_part.added", item, part=part), item

    def _add(self, prefix: str, kind: str) -> _Item:
        index = len(self._items)
        item = _Item(index, item_id(prefix, self._head.message_id, index), kind)
        self._items.append(item)
        return item

    def _close_all(self, status: str) -> bytes:
        frames = self._close_text(status)
        for item in self._calls.values():
            if item.is_open:
                item.is_open = False
                arguments = "".join(item.text)
                frames += self._event(
                    "response.function_call_arguments.done",
                    item_id=item.id,
                    output_index=item.index,
                    name=item.name,
                    arguments=arguments or "{}",
                )
                frames += self._item_event("response.output_item.done", item, status)
        return frames

    def _close_text(self, status: str) -> bytes:
        open_items = [i for i in self._items if i.is_open and i.kind in {_MESSAGE, _REASONING}]
        frames = b""
        for item in open_items:
            item.is_open = False
            text = "".join(item.text)
            if item.kind == _MESSAGE:
                frames += self._part_event(
                    "response.output_text.done", item, text=text, logprobs=[]
                )
            else:
                frames += self._part_event("response.reasoning_text.done", item, text=text)
            frames += self._part_event("response.content_part.done", item, part=_part(item, text))
            frames += self._item_event("response.output_item.done", item, status)
        return frames

    def _status(self, item: _Item, status: str) -> str:
        """Return the status of an item at the end: only the last one is cut off."""
        return status if item is self._items[-1] else "completed"

    def _state(self, kind: str) -> bytes:
        return self._event(kind, response=self.response)

    def _item_event(self, kind: str, item: _Item, status: str) -> bytes:
        shape = _whole(item, status) if kind.endswith("done") else _begun(item)
        return self._event(kind, output_index=item.index, item=shape)

    def _part_event(self, kind: str, item: _Item, **fields: Any) -> bytes:
        place = {"item_id": item.id, "output_index": item.index, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._number
        self._number += 1
        if number <= self.shown_after:
            return b""
        body = orjson.dumps({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"

    def _object(self, status: str) -> dict[str, Any]:
        return self._head.fields | {
            "status": status,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "completed_at": None,
            "usage": None,
        }


def answer_values(
    content: str, parts: Sequence[Part] | None, *, is_typed: bool
) -> Iterator[EventValue]:
    """Yield an answer as the fewest events that tell it, in the order in which it was made.

    Of calls only those of the caller's tools. `is_typed`: its text is one JSON value, which
    `content` has.
    """
    if parts is None:
        if content:
            yield OutputTextDelta(content)
        return
    has_text = False
    for part in parts:
        if isinstance(part, ReasoningPart):
            yield ReasoningText(part.text)
        elif isinstance(part, (TextPart, RefusalPart)) and not is_typed:
            yield OutputTextDelta(PARAGRAPH + part.text if has_text else part.text)
            has_text = True
    if is_typed and content:
        yield OutputTextDelta(content)
    for part in parts:
        if isinstance(part, ToolCallPart) and part.status == REQUESTED:
            yield ToolCallArguments(part.call_id, part.name, part.arguments)


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return token counts with the names that responses have."""
    given, made = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "input_tokens": given,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + made,
    }


def _part(item: _Item, text: str) -> dict[str, Any]:
    if item.kind == _REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _begun(item: _Item) -> dict[str, Any]:
    """Return an item as it begins: without content."""
    fields: dict[str, Any] = {"type": item.kind, "id": item.id, "status": "in_progress"}
    if item.kind == _MESSAGE:
        return fields | {"role": "assistant", "content": []}
    if item.kind == _REASONING:
        return fields | {"summary": [], "content": []}
    return fields | {"call_id": item.call_id, "name": item.name, "arguments": ""}


def _whole(item: _Item, status: str) -> dict[str, Any]:
    text = "".join(item.text)
    fields = _begun(item) | {"status": status}
    if item.kind in {_MESSAGE, _REASONING}:
        return fields | {"content": [_part(item, text)]}
    return fields | {"arguments": text or "{}"}

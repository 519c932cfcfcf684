"""A response as an object: what a request says of it, and what a stored turn makes of that."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from app.http.openai_errors import error_body
from app.models import MessageStatus, TurnStatus
from app.routers.openai.ids import RESPONSE, wire_id
from app.routers.openai.responses_frames import ResponseEvents, ResponseHead, answer_values
from app.schemas.openai_responses import ResponseCreate
from app.services.crud import ResponseTurn
from app.services.turns import TurnRequest, Usage
from app.services.turns.errors import error_of_code
from app.services.turns.parts import decode_parts

LENGTH = "length"


def shown_fields(body: ResponseCreate, request: TurnRequest) -> dict[str, Any]:
    """Return what the object shows of its request; what `request` has is left out."""
    fields: dict[str, Any] = {
        "model": body.model,
        "instructions": body.instructions,
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "top_p": body.top_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "temperature": body.temperature,
        "reasoning": body.reasoning.effort if body.reasoning else None,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "user": body.user,
        "truncation": body.truncation,
        "background": body.background,
        "previous_response_id": body.previous_response_id,
        "conversation": body.conversation_id,
    }
    if body.tools and len(body.tools) != len(request.tools):  # of which only some may be called
        fields["tools"] = orjson.dumps(body.tools).decode()
    form: Any = (body.text or {}).get("format")
    if form == {"type": "json_object"}:
        fields["text"] = "json_object"
    return {name: value for name, value in fields.items() if value is not None}


def response_fields(
    turn_id: UUID, created_at: datetime, request: TurnRequest, *, is_stored: bool
) -> dict[str, Any]:
    """Return the fields of the object that do not change while the turn runs."""
    shown: Mapping[str, Any] = request.shown or {}
    conversation: str | None = shown.get("conversation")
    effort: str | None = shown.get("reasoning")
    return {
        "id": wire_id(RESPONSE, turn_id),
        "object": "response",
        "created_at": int(created_at.timestamp()),
        "model": shown.get("model"),
        "previous_response_id": shown.get("previous_response_id"),
        "instructions": shown.get("instructions"),
        "tools": _tools(request),
        "tool_choice": shown.get("tool_choice", "auto"),
        "truncation": shown.get("truncation", "auto" if is_stored else "disabled"),
        "parallel_tool_calls": shown.get("parallel_tool_calls", True),
        "text": {"format": _format(request)},
        "top_p": shown.get("top_p", 1.0),
        "presence_penalty": shown.get("presence_penalty", 0.0),
        "frequency_penalty": shown.get("frequency_penalty", 0.0),
        "top_logprobs": 0,
        "temperature": shown.get("temperature", 1.0),
        "reasoning": {"effort": effort, "summary": None} if effort else None,
        "max_output_tokens": shown.get("max_output_tokens"),
        "max_tool_calls": None,
        "store": is_stored,
        "background": shown.get("background", False),
        "service_tier": "default",
        "metadata": shown.get("metadata", {}),
        "safety_identifier": shown.get("safety_identifier"),
        "prompt_cache_key": shown.get("prompt_cache_key"),
        "conversation": {"id": conversation} if conversation else None,
        "user": shown.get("user"),
    }


def _tools(request: TurnRequest) -> list[dict[str, Any]]:
    given: str | None = (request.shown or {}).get("tools")
    if given is not None:
        return [_echoed(tool) for tool in orjson.loads(given)]
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description or None,
            "parameters": tool.parameters,
            "strict": tool.is_strict,
        }
        for tool in request.tools
    ]


def _echoed(tool: dict[str, Any]) -> dict[str, Any]:
    names = ("type", "name", "description", "parameters")
    return {name: tool.get(name) for name in names} | {"strict": tool.get("strict") is True}


def _format(request: TurnRequest) -> dict[str, Any]:
    if (request.shown or {}).get("text") == "json_object":
        return {"type": "json_object"}
    if request.answer_format is None:
        return {"type": "text"}
    form = request.answer_format.format
    return {
        "type": "json_schema",
        "name": form.name,
        "description": None,
        "schema": form.schema,
        "strict": form.is_strict,
    }


def stored_response(found: ResponseTurn) -> dict[str, Any]:
    """Return a stored turn as a response."""
    turn, message = found.turn, found.message
    request = TurnRequest.from_json(turn.request or {})
    fields = response_fields(turn.id, turn.created_at, request, is_stored=True)
    fields["model"] = fields["model"] or found.model
    events = ResponseEvents(ResponseHead(message.id, fields), shows_calls=True)
    if turn.status is TurnStatus.QUEUED:
        events.announce("queued", "queued")
    if turn.ended_at is None:
        return events.response
    parts = decode_parts(message.parts) if message.parts else None
    is_typed = message.output is not None
    events.encode(answer_values(message.content, parts, is_typed=is_typed))
    usage = Usage(turn.prompt_tokens, turn.cached_tokens, turn.completion_tokens)
    if turn.status is TurnStatus.FAILED:
        error = error_of_code(turn.error_code or "", turn.error_detail or "")
        events.fail(error_body(error))
    elif turn.status is TurnStatus.CANCELLED:
        events.cancel(usage)
    else:
        reason = turn.finish_reason
        if message.status is MessageStatus.TRUNCATED:
            reason = LENGTH
        events.complete(reason, usage, int(turn.ended_at.timestamp()))
    return events.response

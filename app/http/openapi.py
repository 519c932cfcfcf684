"""What FastAPI does not describe by itself: each endpoint's errors, and the events of streams."""

from http import HTTPStatus
from typing import Any

from app.http.content_negotiation import EVENT_STREAM_TYPE
from app.http.permissions import PUBLIC_PATHS
from app.http.plain_text_errors import is_plain_text_path
from app.http.problems import PROBLEM_TYPE
from app.services.turns.events import EVENT_VALUES, EventType

_AUTHENTICATED = (401, 403, 404, 429, 503)
"""404 also if `X-Workspace-Id` is not a workspace of the caller."""
_WITH_BODY = (400, 408, 413, 415)
_TURN = (409, 502, 504)
"""The statuses of failed turns, for endpoints that wait for a turn."""
_ADDITIONAL: dict[tuple[str, str], tuple[int, ...]] = {
    ("put", "/agents/{agent_id}"): (409, 412),
    ("patch", "/agents/{agent_id}"): (409, 412),
    ("patch", "/sessions/{session_id}"): (409,),
    ("post", "/agents/{agent_id}/versions/{version}/restore"): (409,),
    ("post", "/agents"): (409,),
    ("post", "/tools"): (409,),
    ("post", "/tools/import"): (409,),
    ("put", "/tools/{tool_id}"): (409,),
    ("patch", "/tools/{tool_id}"): (409,),
    ("delete", "/tools/{tool_id}"): (409,),
    ("post", "/mcp-servers"): (409,),
    ("put", "/mcp-servers/{server_id}"): (409,),
    ("patch", "/mcp-servers/{server_id}"): (409,),
    ("delete", "/mcp-servers/{server_id}"): (409,),
    ("post", "/mcp-servers/{server_id}/refresh"): (409,),
    ("post", "/mcp-servers/{server_id}/tools/{name}/accept"): (409,),
    ("post", "/sessions"): (409,),
    ("post", "/sessions/{session_id}/fork"): (409,),
    ("delete", "/files/{file_id}"): (409,),
    ("post", "/files"): (409,),
    ("post", "/messages/text"): (*_TURN, 410),
    ("post", "/messages/voice"): (*_TURN, 410),
    ("post", "/v1/chat/completions"): _TURN,
    ("post", "/v1/responses"): _TURN,
    ("post", "/v1/audio/transcriptions"): (502, 504),
    ("post", "/v1/audio/speech"): (502, 504),
    ("post", "/api/chat"): (*_TURN, 410),
    ("get", "/api/chat/{chat_id}/stream"): _TURN,
    ("delete", "/api/chat/{chat_id}/stream"): (409,),
    ("post", "/agui/{agent}"): (*_TURN, 410),
    ("delete", "/v1/responses/{response_id}"): (409,),
    ("post", "/v1/conversations"): (409,),
    ("post", "/v1/conversations/{conversation_id}"): (409,),
    ("delete", "/v1/conversations/{conversation_id}/items/{item_id}"): (409,),
    ("get", "/turns/{turn_id}/audio"): (*_TURN, 416),
    ("post", "/turns/{turn_id}/retry"): (409,),
    ("post", "/tool-calls/{call_id}/resolution"): (409, 429, 503),
    ("patch", "/keys/{key_id}"): (409,),
    ("post", "/keys/{key_id}/rotate"): (409,),
    ("get", "/health/ready"): (503,),
}
_REFERENCE = "#/components/schemas/"
BINARY_SCHEMA: dict[str, Any] = {"type": "string", "format": "binary"}
"""Bytes, as generators of clients know them; OpenAPI 3.1 itself would leave the schema out."""
MP3_CONTENT: dict[str, Any] = {"audio/mpeg": {"schema": BINARY_SCHEMA}}
VOICE_HEADERS: dict[str, Any] = {
    "X-Transcription": {
        "description": "The transcript of the recording, percent-encoded.",
        "schema": {"type": "string"},
    },
    "X-Turn-Id": {"schema": {"type": "string", "format": "uuid"}},
    "X-Session-Id": {"schema": {"type": "string", "format": "uuid"}},
    "X-Turn-Status": {
        "description": "Where somebody must act on a tool call before the answer goes on, and that "
        "is known when the sound begins.",
        "schema": {"const": "requires_action"},
    },
}
"""Of every response that is a spoken answer."""
_LINK = {
    "description": 'The next page, if there is one: `<...>; rel="next"` (RFC 8288).',
    "schema": {"type": "string"},
}
_RETRY_AFTER = {
    "description": "Seconds after which the same request may succeed.",
    "schema": {"type": "integer", "minimum": 1},
}
_TEMPORARY = (429, 503)
_FORM_NAMES = {
    "Body_send_voice_message": "VoiceMessageCreate",
    "Body_upload_file": "FileUpload",
    "Body_create_transcription": "TranscriptionCreate",
}
"""FastAPI names the schema of a form after its operation."""
_PROBLEM_CONTENT = {PROBLEM_TYPE: {"schema": {"$ref": _REFERENCE + "Problem"}}}
_TEXT_CONTENT = {"text/plain": {"schema": {"type": "string"}}}
_OPENAI_PREFIX = "/v1/"
_OPENAI_ERROR = "OpenAIError"
_OPENAI_ERROR_CONTENT = {"application/json": {"schema": {"$ref": _REFERENCE + _OPENAI_ERROR}}}
_OPENAI_ERROR_SCHEMA: dict[str, Any] = {
    "title": _OPENAI_ERROR,
    "type": "object",
    "description": "An error under `/v1`, as OpenAI's API has it.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_AT_MS = {"type": "integer", "description": "Milliseconds since the turn was accepted."}
_STREAM_ONLY_EVENTS: dict[str, dict[str, Any]] = {
    "server.draining": {
        "type": "object",
        "description": "This server shuts down: follow the turn again, on another server.",
    },
    "error": {
        "type": "object",
        "description": "The stream ends early, as where its key was revoked.",
        "properties": {"code": {"type": "string"}, "detail": {"type": "string"}},
        "required": ["code", "detail"],
    },
}
"""Events of a connection, not of a turn: they have no number and are not stored."""


def _event_schema_name(event: str) -> str:
    words = event.replace("_", ".").split(".")
    return "".join(word.capitalize() for word in words) + "Event"


EVENT_STREAM_CONTENT: dict[str, Any] = {
    EVENT_STREAM_TYPE: {
        "schema": {
            "description": "Server-sent events, each one of these: `id` is the event's number in "
            "its turn, `event` its type, and `data` one line of JSON.",
            "oneOf": [
                {"$ref": _REFERENCE + _event_schema_name(event)}
                for event in (*EventType, *_STREAM_ONLY_EVENTS)
            ],
        }
    }
}
"""The content of a response that may be a stream of a turn's events."""

DIALECT_STREAM_CONTENT: dict[str, Any] = {
    EVENT_STREAM_TYPE: {
        "schema": {
            "description": "Server-sent events in the words of another API: `data` is one line of "
            "JSON, or `[DONE]`.",
            "type": "object",
            "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
        }
    }
}
"""The content of a response that may be a stream in another API's dialect."""

_SESSION_EVENTS = {"session.changed": "SessionRead", "turn.changed": "SessionTurn"}
"""Events of a session's stream, with the schemas of their data."""
SESSION_STREAM_CONTENT: dict[str, Any] = {
    EVENT_STREAM_TYPE: {
        "schema": {
            "description": "Server-sent events, each one of these: `event` is its type, and `data` "
            "one line of JSON.",
            "oneOf": [
                {"$ref": _REFERENCE + _event_schema_name(event)}
                for event in (*_SESSION_EVENTS, *_STREAM_ONLY_EVENTS)
            ],
        }
    }
}
"""The content of a stream of a session's events."""


def describe_events(schema: dict[str, Any]) -> None:
    """Add the schemas that `EVENT_STREAM_CONTENT` and `SESSION_STREAM_CONTENT` refer to."""
    from pydantic import TypeAdapter

    from app.schemas.chat import SessionTurn

    data_schemas: dict[str, dict[str, Any]] = {}
    components = schema["components"]["schemas"]
    for event, value in EVENT_VALUES.items():
        data = TypeAdapter(value).json_schema(
            ref_template=_REFERENCE + "{model}", mode="serialization"
        )
        definitions = data.pop("$defs", {})
        for each in (data, *definitions.values()):
            if properties := each.get("properties"):
                each["required"] = list(
                    properties
                )  # all are written, also where they have defaults
        data.setdefault("properties", {})["at_ms"] = _AT_MS
        components.update(definitions)
        name = f"{_event_schema_name(event)}Data"
        components[name] = data
        data_schemas[event] = {"$ref": _REFERENCE + name}
    components["SessionTurn"] = SessionTurn.model_json_schema(
        ref_template=_REFERENCE + "{model}", mode="serialization"
    )
    components["SessionTurn"].pop("$defs")  # the document has them already
    session_events = {event: {"$ref": _REFERENCE + name} for event, name in _SESSION_EVENTS.items()}
    for event, data in {**data_schemas, **session_events, **_STREAM_ONLY_EVENTS}.items():
        # As in OpenAPI 3.2: the fields of an event are strings, whose content has a schema.
        content = {"contentMediaType": "application/json", "contentSchema": data}
        is_numbered = event in data_schemas
        number = {"id": {"type": "string", "pattern": "^[1-9][0-9]*$"}} if is_numbered else {}
        components[_event_schema_name(event)] = {
            "type": "object",
            "properties": {
                **number,
                "event": {"const": event},
                "data": {"type": "string", **content},
            },
            "required": [*number, "event", "data"],
        }


def describe_errors(schema: dict[str, Any]) -> None:
    """Replace the ranges `4XX` and `5XX` that routes declare by each endpoint's statuses."""
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            responses.pop("4XX")
            responses.pop("5XX")
            for status in _errors(method, path, operation):
                problem: dict[str, Any] = {"description": HTTPStatus(status).phrase}
                if status in _TEMPORARY:
                    problem["headers"] = {"Retry-After": _RETRY_AFTER}
                responses[str(status)] = {**problem, "content": _error_content(path)}
    schema["components"]["schemas"][_OPENAI_ERROR] = _OPENAI_ERROR_SCHEMA


def _error_content(path: str) -> dict[str, Any]:
    if path.startswith(_OPENAI_PREFIX):
        return _OPENAI_ERROR_CONTENT
    return _TEXT_CONTENT if is_plain_text_path(path) else _PROBLEM_CONTENT


def describe_operations(schema: dict[str, Any]) -> None:
    """Say which endpoints need no key and which have further pages, and name forms."""
    schema["servers"] = [{"url": "/", "description": "The server that serves this document"}]
    components = schema["components"]["schemas"]
    for given, name in _FORM_NAMES.items():
        components[name] = components.pop(given) | {"title": name}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in PUBLIC_PATHS:
                operation["security"] = []
            if any(each["name"] == "cursor" for each in operation.get("parameters", ())):
                operation["responses"]["200"].setdefault("headers", {})["Link"] = _LINK
            for content in operation.get("requestBody", {}).get("content", {}).values():
                reference = content["schema"].get("$ref", "").removeprefix(_REFERENCE)
                if reference in _FORM_NAMES:
                    content["schema"] = {"$ref": _REFERENCE + _FORM_NAMES[reference]}


def _errors(method: str, path: str, operation: dict[str, Any]) -> list[int]:
    statuses = {500, *_ADDITIONAL.get((method, path), ())}
    if path not in PUBLIC_PATHS:
        statuses.update(_AUTHENTICATED)
    if "requestBody" in operation:
        statuses.update(_WITH_BODY)
    if "system" not in operation.get("tags", ()) or operation.get("parameters"):
        statuses.add(422)  # of unknown query parameters, if of nothing else
    if path.startswith(_OPENAI_PREFIX) and 422 in statuses:  # noqa: PLR2004
        statuses = statuses - {422} | {400}
    return sorted(statuses)

"""Which errors each endpoint may answer with, one by one, for the API's description."""

from http import HTTPStatus
from typing import Any

from app.routers.rules import PUBLIC_PATHS

_GUARDED = (401, 403, 404, 429, 503)
"""A 404 also where `X-Workspace-Id` names none of the caller's."""
_OF_A_BODY = (400, 408, 413, 415)
_TURN = (409, 502, 504)
"""How a turn may end that is waited for."""
_FURTHER: dict[tuple[str, str], tuple[int, ...]] = {
    ("put", "/agents/{agent_id}"): (409,),
    ("post", "/agents/{agent_id}/versions/{version}/restore"): (409,),
    ("post", "/sessions"): (409,),
    ("post", "/sessions/{session_id}/fork"): (409,),
    ("post", "/messages/text"): _TURN,
    ("post", "/messages/voice"): _TURN,
    ("get", "/turns/{turn_id}/audio"): (*_TURN, 416),
    ("post", "/keys/{key_id}/rotate"): (409,),
    ("get", "/health/ready"): (503,),
}


def describe_errors(schema: dict[str, Any]) -> None:
    """Name each status in place of the ranges that FastAPI was given."""
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            problem = responses.pop("4XX")
            responses.pop("5XX")
            for status in _errors(method, path, operation):
                described = HTTPStatus(status).phrase
                responses[str(status)] = {**problem, "description": described}


def _errors(method: str, path: str, operation: dict[str, Any]) -> list[int]:
    found = {500, *_FURTHER.get((method, path), ())}
    if path not in PUBLIC_PATHS:
        found.update(_GUARDED)
    if "requestBody" in operation:
        found.update(_OF_A_BODY)
    if "requestBody" in operation or operation.get("parameters"):
        found.add(422)
    return sorted(found)

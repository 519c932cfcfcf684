"""Builds the request of one call from the tool's templates."""

import time
from collections.abc import Mapping
from dataclasses import field
from typing import Any
from uuid import UUID

import orjson

from app.core.value_objects import value_object
from app.services.tool_ports import HttpCall, ToolCallRequest
from app.services.tools import templates
from app.services.tools.definitions import METHODS_WITHOUT_BODY
from app.services.tools.signing import signature_headers


@value_object(frozen=True, slots=True)
class HttpRequest:
    """A request, complete but for what the connection adds."""

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


def build_request(
    call: ToolCallRequest,
    http: HttpCall,
    arguments: Mapping[str, Any],
    secrets: Mapping[str, str],
    signing_key: bytes,
) -> HttpRequest:
    """Return the request of `call`. Raises `ArgumentUnusable`."""
    hidden = hidden_values(call, secrets)
    in_url = templates.argument_names_of(http.url)
    rest = {name: value for name, value in arguments.items() if name not in in_url}
    fixed_query = templates.fill_json(http.query, hidden)
    headers = {name: templates.fill_header(value, hidden) for name, value in http.headers.items()}
    body: bytes | None = None
    if http.method in METHODS_WITHOUT_BODY:
        url = templates.fill_url(http.url, arguments, {**rest, **fixed_query})
    else:
        url = templates.fill_url(http.url, arguments, fixed_query)
        body = _json({**rest, **templates.fill_json(http.body or {}, hidden)})
        headers["Content-Type"] = "application/json"
    headers["Idempotency-Key"] = str(call.id)
    if call.traceparent:
        headers["traceparent"] = call.traceparent
    headers.update(signature_headers(signing_key, str(call.id), int(time.time()), body or b""))
    return HttpRequest(http.method, url, headers, body)


def hidden_values(call: ToolCallRequest, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return what templates may hold besides arguments, by its name in them."""
    return {
        "user.id": call.user_id or "",
        "session.id": _text(call.session_id),
        "turn.id": _text(call.turn_id),
        "call.id": str(call.id),
        "agent.id": _text(call.agent_id),
        **{f"secrets.{name}": value for name, value in secrets.items()},
    }


def _json(value: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits, or a lone surrogate
        raise templates.ArgumentUnusable("an argument cannot be written as JSON") from None


def _text(value: UUID | None) -> str:
    return "" if value is None else str(value)

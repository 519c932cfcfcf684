"""`POST /messages/text` past FastAPI, whose own work was a quarter of a turn's CPU.

Only for requests as they should be: whatever else comes goes on to the endpoint of `messages.py`,
as it came. That endpoint is what the schema describes, and both are made of the same parts.
"""

import asyncio
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import AppError
from app.core.security import Caller
from app.routers.connections import BODY_IS_HERE
from app.routers.idempotency import request_key
from app.routers.messages import start_text, text_events, text_reply
from app.routers.problems import RequestTimeout, problem_response
from app.routers.rules import rule_of
from app.routers.streams import SSE_TYPE
from app.routers.strict_route import BODY_GRACE_SECONDS, JSON_BYTES
from app.schemas.chat import OnDisconnect, TextMessageCreate
from app.services.turns import RequestKey

_PATH = "/messages/text"
_RULE = rule_of(("POST",), _PATH)
_JSON = (b"application/json", b"application/json; charset=utf-8")
_EVENTS = SSE_TYPE.encode()
_LONGEST_LENGTH = len(str(JSON_BYTES))


class ShortWay:
    """Answers plain text messages, and passes on everything else. Behind the door."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not _is_plain(headers, len(scope["headers"])):
            await self._app(scope, receive, send)
            return
        try:
            _RULE.check(scope["state"]["caller"])
            if scope["state"].get(BODY_IS_HERE):
                message = await receive()  # at once
            else:
                async with asyncio.timeout(BODY_GRACE_SECONDS):
                    message = await receive()
            body = None if message.get("more_body") else _read(message)
            if body is None:
                await self._app(scope, _again(message, receive), send)
                return
            response = await _answer(scope["state"], headers, body, message["body"])
        except TimeoutError:
            response = _problem(scope, RequestTimeout("The body did not come in time."))
        except AppError as error:
            response = _problem(scope, error)
        await response(scope, receive, send)


def _is_plain(headers: dict[bytes, bytes], count: int) -> bool:
    """Tell whether these are headers that the endpoint would take; none of them comes twice."""
    length = headers.get(b"content-length", b"")
    return (
        len(headers) == count
        and headers.get(b"content-type", b"").lower() in _JSON
        and length.isdigit()
        and len(length) <= _LONGEST_LENGTH
        and int(length) <= JSON_BYTES
        and b"transfer-encoding" not in headers
    )


def _read(message: Message) -> TextMessageCreate | None:
    """Return the body where it is valid, and where nobody need watch whether the client leaves."""
    try:
        body = TextMessageCreate.model_validate(orjson.loads(message["body"]))
    except (KeyError, orjson.JSONDecodeError, ValidationError):
        return None
    return body if body.on_disconnect is OnDisconnect.CONTINUE else None


async def _answer(
    state: dict[str, Any], headers: dict[bytes, bytes], body: TextMessageCreate, sent: bytes
) -> Response:
    turns, caller = state["turns"], state["caller"]
    live = await start_text(turns, caller, body, _key(caller, headers, sent))
    if _EVENTS in headers.get(b"accept", b""):
        return text_events(turns, state["database"], live)
    return await text_reply(turns, live)


def _key(caller: Caller, headers: dict[bytes, bytes], body: bytes) -> RequestKey | None:
    given = headers.get(b"idempotency-key")
    return None if given is None else request_key(caller, given.decode("latin-1"), _PATH, body)


def _again(message: Message, receive: Receive) -> Receive:
    """Return what first receives `message`, which was taken already."""
    is_taken = False

    async def receive_again() -> Message:
        nonlocal is_taken
        if is_taken:
            return await receive()
        is_taken = True
        return message

    return receive_again


def _problem(scope: Scope, error: AppError) -> Response:
    return problem_response(error, scope["state"]["request_id"])

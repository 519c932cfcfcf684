"""Every endpoint's first steps: may the caller do this, and is the body one that it takes?

Bodies are bounded in size and time, and hold nothing that cannot be stored.
"""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import anyio
import orjson
from fastapi import Request, Response
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive
from typing_extensions import override

from app.routers.problems import PROBLEM_RESPONSES, UnsupportedMediaType
from app.routers.rules import rule_of
from app.services.voice import UPLOAD_BYTES_LIMIT

JSON_BYTES = 1024 * 1024
_FORM_BYTES = UPLOAD_BYTES_LIMIT + 64 * 1024
"""An upload with its other fields and the lines between them."""
BODY_GRACE_SECONDS = 10.0
_BODY_BYTES_PER_SECOND = 4096
"""What a body must come to, on average, once the grace is over."""
_BODY_SECONDS = 300.0


class _StrictRequest(Request):
    @override
    async def json(self) -> Any:
        # orjson bounds the depth, and refuses NaN, infinity and lone surrogates.
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    """Serves whom `rules` name, and takes the body that its endpoint declares, and no other."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        responses: dict[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """Take FastAPI's arguments; the API's description says that any answer may be a problem."""
        all_responses = {**PROBLEM_RESPONSES, **(responses or {})}
        super().__init__(path, endpoint, responses=all_responses, **options)

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        rule = rule_of(self.methods or (), self.path)
        handle = self._handle_body()

        async def handle_allowed(request: Request) -> Response:
            rule.check(request.state.caller)
            return await handle(request)

        return handle_allowed

    def _handle_body(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        is_form = isinstance(self.body_field.field_info, Form)
        wanted = "multipart/form-data" if is_form else "application/json"
        is_required = self.body_field.field_info.is_required()
        limit_bytes = _FORM_BYTES if is_form else JSON_BYTES

        async def handle_strictly(request: Request) -> Response:
            if not is_required and not _has_body(request):
                return await handle(_StrictRequest(request.scope, request.receive))
            given = request.headers.get("content-type", "")
            if given.partition(";")[0].strip().lower() != wanted:
                raise UnsupportedMediaType(f"Send the body with `Content-Type: {wanted}`.")
            announced = request.headers.get("content-length", "0")
            if announced.isdecimal() and int(announced[:20]) > limit_bytes:
                raise _too_large()
            receive = _bounded(limit_bytes, request.receive)
            return await handle(_StrictRequest(request.scope, receive))

        return handle_strictly


def _has_body(request: Request) -> bool:
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _bounded(limit_bytes: int, receive: Receive) -> Receive:
    """Stop reading once more came than may, or it comes too slowly.

    What a client announces need not be true.
    """
    began_at = anyio.current_time()
    received_bytes = 0
    is_complete = False

    async def receive_counting() -> Message:
        nonlocal received_bytes, is_complete
        if is_complete:  # what comes now is that the client leaves
            return await receive()
        earned_seconds = received_bytes / _BODY_BYTES_PER_SECOND
        give_up_at = began_at + min(_BODY_SECONDS, BODY_GRACE_SECONDS + earned_seconds)
        message = None
        with anyio.move_on_at(give_up_at):
            message = await receive()
        if message is None:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT)
        received_bytes += len(message.get("body", b""))
        if received_bytes > limit_bytes:
            raise _too_large()
        is_complete = not message.get("more_body", False)
        return message

    return receive_counting


def _too_large() -> HTTPException:
    # The one type of error that FastAPI passes on while it reads a body.
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

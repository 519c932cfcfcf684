"""Bodies as strictly as the databases need them: bounded, and nothing that cannot be stored."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive
from typing_extensions import override

from app.routers.problems import UnsupportedMediaType
from app.services.voice import UPLOAD_BYTES_LIMIT

_JSON_BYTES = 1024 * 1024
_FORM_BYTES = UPLOAD_BYTES_LIMIT + 64 * 1024
"""An upload with its other fields and the lines between them."""


class _StrictRequest(Request):
    @override
    async def json(self) -> Any:
        # orjson bounds the depth, and refuses NaN, infinity and lone surrogates.
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    """Takes the body that its endpoint declares, JSON or a form, and no other."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        is_form = isinstance(self.body_field.field_info, Form)
        wanted = "multipart/form-data" if is_form else "application/json"
        is_required = self.body_field.field_info.is_required()
        limit_bytes = _FORM_BYTES if is_form else _JSON_BYTES

        async def handle_strictly(request: Request) -> Response:
            if not is_required and not _has_body(request):
                return await handle(_StrictRequest(request.scope, request.receive))
            given = request.headers.get("content-type", "")
            if given.partition(";")[0].strip().lower() != wanted:
                raise UnsupportedMediaType(f"Send the body with `Content-Type: {wanted}`.")
            announced = request.headers.get("content-length", "0")
            if announced.isdecimal() and int(announced[:20]) > limit_bytes:
                raise _too_large()
            receive = _at_most(limit_bytes, request.receive)
            return await handle(_StrictRequest(request.scope, receive))

        return handle_strictly


def _has_body(request: Request) -> bool:
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _at_most(limit_bytes: int, receive: Receive) -> Receive:
    """Stop reading once more came than may: what a client announces need not be true."""
    received_bytes = 0

    async def receive_counting() -> Message:
        nonlocal received_bytes
        message = await receive()
        received_bytes += len(message.get("body", b""))
        if received_bytes > limit_bytes:
            raise _too_large()
        return message

    return receive_counting


def _too_large() -> HTTPException:
    # The one type of error that FastAPI passes on while it reads a body.
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

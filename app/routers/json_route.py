"""JSON as strictly as the databases behind it need it: no NaN, infinity or lone surrogate."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.params import Form
from fastapi.routing import APIRoute
from typing_extensions import override

from app.routers.problems import UnsupportedMediaType

JSON_BODY_BYTES = 1024 * 1024


class _StrictRequest(Request):
    @override
    async def json(self) -> Any:
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """Parses bodies with orjson, which bounds depth and refuses what cannot be stored."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        wanted = self._wanted_content_type()

        async def handle_strictly(request: Request) -> Response:
            if wanted:
                given = request.headers.get("content-type", "")
                if given.partition(";")[0].strip().lower() != wanted:
                    raise UnsupportedMediaType(f"Send the body with `Content-Type: {wanted}`.")
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly

    def _wanted_content_type(self) -> str | None:
        if self.body_field is None:
            return None
        is_form = isinstance(self.body_field.field_info, Form)
        return "multipart/form-data" if is_form else "application/json"

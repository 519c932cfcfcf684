"""The route class of every endpoint: checks the caller's permission and the body's limits."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from typing_extensions import override

from app.http.compression import compressed
from app.http.multipart import close_files, read_multipart
from app.http.permissions import endpoint_policy
from app.http.problems import PROBLEM_RESPONSES
from app.http.query_parameters import require_known_parameters
from app.http.request_body import (
    FORM_BYTES,
    FORM_TYPE,
    JSON_BYTES,
    JSON_TYPE,
    bounded_receive,
    require_announced_length,
    require_media_type,
)


class _StrictRequest(Request):
    @override
    async def json(self) -> Any:
        # orjson limits the depth, and refuses NaN, infinity and lone surrogates.
        return orjson.loads(await self.body())

    @override
    async def _get_form(self, **limits: Any) -> FormData:
        if self._form is None:
            self._form = await read_multipart(self, self.state.known_fields, **limits)
        return self._form


class EndpointRoute(APIRoute):
    """Serves the callers that its policy allows, and takes only the body that it declares."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        responses: dict[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """Create a route with FastAPI's arguments; declare that errors are problem documents."""
        all_responses = {**PROBLEM_RESPONSES, **(responses or {})}
        options["name"] = options.get("name") or endpoint.__name__
        # Generators of clients name functions by it.
        options["operation_id"] = options.get("operation_id") or options["name"]
        super().__init__(path, endpoint, responses=all_responses, **options)

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        policy = endpoint_policy(self.methods or (), self.path)
        handle = self._handle_body()

        known, is_system = tuple(_query_parameters(self.dependant)), "system" in self.tags
        body_fields = _body_fields(self.body_field)

        async def handle_allowed(request: Request) -> Response:
            policy.check(request.state.caller)
            if not is_system:  # a scraper's parameters are its own
                require_known_parameters(request.url.query, known)
            request.state.known_fields = body_fields
            return compressed(request, await handle(request))

        return handle_allowed

    def _handle_body(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        is_form = isinstance(self.body_field.field_info, Form)
        media_type = FORM_TYPE if is_form else JSON_TYPE
        is_required = self.body_field.field_info.is_required()
        limit_bytes = FORM_BYTES if is_form else JSON_BYTES

        async def handle_strictly(request: Request) -> Response:
            if not is_required and not _has_body(request):
                return await handle(_StrictRequest(request.scope, request.receive))
            require_media_type(request.headers.get("content-type", ""), media_type)
            require_announced_length(request.headers.get("content-length", ""), limit_bytes)
            receive = bounded_receive(limit_bytes, request.receive)
            strict_request = _StrictRequest(request.scope, receive)
            if not is_form:
                return await handle(strict_request)
            # FastAPI would answer every error of reading it in the same words.
            form = await strict_request.form()
            try:
                return await handle(strict_request)
            finally:
                close_files(form)

        return handle_strictly


def _query_parameters(dependant: Any) -> Iterator[str]:  # noqa: ANN401  # FastAPI's `Dependant`
    """Yield the names of the query parameters that an endpoint and its dependencies take."""
    for parameter in dependant.query_params:
        yield parameter.alias
    for dependency in dependant.dependencies:
        yield from _query_parameters(dependency)


def _body_fields(body: Any) -> tuple[str, ...]:  # noqa: ANN401  # FastAPI's `ModelField`
    """Return the names of a body's fields."""
    shape = body.field_info.annotation if body else None
    fields: Any = getattr(shape, "model_fields", {})
    return tuple(fields)


def _has_body(request: Request) -> bool:
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

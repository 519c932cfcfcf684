"""What the endpoints that are plain ASGI applications share: read a request, send a response."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import AppError
from app.core.security import Caller
from app.core.value_objects import value_object
from app.http.idempotency import RequestKey, request_key
from app.http.permissions import endpoint_policy
from app.http.problems import problem_response
from app.http.pushed_stream import PushedStream
from app.http.query_parameters import require_known_parameters
from app.http.request_body import (
    JSON_TYPE,
    MESSAGE_BYTES,
    parse_json_body,
    read_body,
    require_announced_length,
    require_few_values,
    require_media_type,
)

Body = TypeVar("Body", bound=BaseModel)

METHOD = "POST"
BODY_BYTES = MESSAGE_BYTES
"""A whole conversation comes with each request, and one of the largest images."""


@value_object(frozen=True, slots=True)
class ReadRequest(Generic[Body]):
    """A request that was checked and read."""

    caller: Caller
    headers: Mapping[bytes, bytes]
    path: str
    content: bytes
    body: Body

    @property
    def key(self) -> RequestKey | None:
        """The `Idempotency-Key`. Raises `IdempotencyKeyInvalid`."""
        return request_key(
            self.caller, self.headers.get(b"idempotency-key"), self.path, self.content
        )


async def read_request(
    scope: Scope, receive: Receive, path: str, shape: type[Body]
) -> ReadRequest[Body]:
    """Check and read a request; `path` is the route's. Raises what every endpoint does."""
    caller = scope["state"]["caller"]
    endpoint_policy((METHOD,), path).check(caller)
    require_known_parameters(scope.get("query_string", b"").decode("latin-1"), ())
    headers: dict[bytes, bytes] = dict(scope["headers"])
    require_media_type(headers.get(b"content-type", b"").decode("latin-1"), JSON_TYPE)
    require_announced_length(headers.get(b"content-length", b"").decode("latin-1"), BODY_BYTES)
    content = await read_body(scope, receive, BODY_BYTES)
    require_few_values(content)
    return ReadRequest(caller, headers, path, content, parse_json_body(content, shape))


def endpoint(respond: Callable[[Scope, Receive], Awaitable[Response]]) -> ASGIApp:
    """Return the ASGI application of an endpoint; errors before the first byte have a status."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        response: Response | None = None
        try:
            response = await respond(scope, receive)
            await response(scope, receive, send)
        except AppError as error:
            if isinstance(response, PushedStream) and response.has_begun:
                raise  # the connection is aborted, so that the client sees that it broke off
            response = problem_response(error, scope["state"]["request_id"])
            await response(scope, receive, send)

    return serve

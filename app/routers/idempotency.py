"""The `Idempotency-Key` header: the same request again is answered as the first time."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app.core.errors import AppError, ErrorKind
from app.core.security import Caller
from app.routers.deps import Caller as RequestCaller
from app.services.turns import RequestKey, keys

REPLAYED = "Idempotent-Replayed"
_LONGEST_KEY = 255

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="1 to 255 visible ASCII characters. The same key with the same body is "
        "answered as the first time; keys are kept for 24 hours.",
    ),
]


class IdempotencyKeyInvalid(AppError):
    """The idempotency key is not valid."""

    kind = ErrorKind.INVALID
    code = "idempotency-key-invalid"


async def _request_key(
    request: Request, caller: RequestCaller, key: KeyHeader = None
) -> RequestKey | None:
    if key is None:
        return None
    if not request.headers.get("content-type", "").startswith("multipart/"):
        return request_key(caller, key, request.url.path, await request.body())
    # Boundaries differ from try to try; what counts is the fields and the file's bytes.
    parts: list[bytes] = []
    for name, value in sorted((await request.form()).multi_items(), key=lambda pair: pair[0]):
        data = await value.read() if isinstance(value, UploadFile) else value.encode()
        if isinstance(value, UploadFile):
            await value.seek(0)
        parts += (f"{name} {len(data)}\n".encode(), data)
    return request_key(caller, key, request.url.path, *parts)


def request_key(caller: Caller, key: str, path: str, *body: bytes) -> RequestKey:
    """Return a POST's key with the fingerprint of what it asks for.

    Raises `IdempotencyKeyInvalid`.
    """
    if not (1 <= len(key) <= _LONGEST_KEY and all("!" <= character <= "~" for character in key)):
        raise IdempotencyKeyInvalid("Idempotency-Key takes 1 to 255 visible ASCII characters.")
    digest = hashlib.sha256(f"POST {path}\n".encode())
    for part in body:
        digest.update(part)
    return RequestKey(_of_caller(caller, key), digest.digest())


def _of_caller(caller: Caller, key: str) -> str:
    """Keep the keys of end users apart: theirs come from browsers, and lead to their sessions."""
    if caller.sees_every_session:
        return key
    owner = f"{caller.user_id} {caller.session_id} {key}"
    return "of-" + hashlib.sha256(owner.encode()).hexdigest()


Key = Annotated[RequestKey | None, Depends(_request_key)]


async def once(  # noqa: PLR0913, PLR0917  # what a stored answer needs
    key: RequestKey | None,
    db: AsyncSession,
    caller: Caller,
    shape: type[BaseModel],
    work: Callable[[], Awaitable[object]],
    status: int = 201,
) -> Response:
    """Do `work` in the request's transaction and answer it, or answer as the first time.

    Raises `IdempotencyKeyReused`, and what `work` raises; then the key is free again.
    """
    if key and (stored := await keys.claim_for_answer(db, caller.workspace_id, key)):
        first_status, first_body = stored
        return _json(first_body, first_status, {REPLAYED: "true"})
    made = await work()
    await db.flush()
    body = shape.model_validate(made).model_dump_json().encode()
    if key:
        await keys.keep_answer(db, caller.workspace_id, key, status, body)
    return _json(body, status, {})


def _json(body: bytes, status: int, headers: dict[str, str]) -> Response:
    return Response(body, status, headers, media_type="application/json")

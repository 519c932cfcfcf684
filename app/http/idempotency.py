"""The `Idempotency-Key` header: a repeated request gets the response of the first one."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app.core.errors import AppError, ErrorKind
from app.core.security import Caller
from app.http.deps import Caller as RequestCaller
from app.services.turns import RequestKey
from app.services.turns.retention import IDEMPOTENCY_KEY_RETENTION
from app.services.turns.storage import idempotency_keys

REPLAYED = "Idempotent-Replayed"
_LONGEST_KEY, _LONGEST_COUNT = 255, 3
_KEPT_HOURS = IDEMPOTENCY_KEY_RETENTION // timedelta(hours=1)

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="1 to 255 visible ASCII characters. The same key with the same body is "
        f"answered as the first time; keys are kept for {_KEPT_HOURS} hours.",
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
    given = key.encode("latin-1", "replace")
    if not request.headers.get("content-type", "").startswith("multipart/"):
        return request_key(caller, given, request.url.path, await request.body())
    # Boundaries differ from try to try; what counts is the fields and the file's bytes.
    parts: list[bytes] = []
    for name, value in sorted((await request.form()).multi_items(), key=lambda pair: pair[0]):
        data = await value.read() if isinstance(value, UploadFile) else value.encode()
        if isinstance(value, UploadFile):
            await value.seek(0)
        parts += (f"{name} {len(data)}\n".encode(), data)
    return request_key(caller, given, request.url.path, *parts)


def request_key(caller: Caller, header: bytes | None, path: str, *body: bytes) -> RequestKey | None:
    """Return the key of a POST with the fingerprint of its path and body; `None` without a header.

    Raises `IdempotencyKeyInvalid`.
    """
    if header is None:
        return None
    key = header.decode("latin-1")
    if not (1 <= len(key) <= _LONGEST_KEY and all("!" <= character <= "~" for character in key)):
        raise IdempotencyKeyInvalid("Idempotency-Key takes 1 to 255 visible ASCII characters.")
    digest = hashlib.sha256(f"POST {path}\n".encode())
    for part in body:
        digest.update(part)
    return RequestKey(_scoped_key(caller, key), digest.digest())


def sdk_key(
    caller: Caller, headers: Mapping[bytes, bytes], path: str, body: bytes
) -> RequestKey | None:
    """Return a key that is made of the request, since OpenAI's SDKs send none with their retries.

    `None` for other clients. They say how often they have sent the request before.
    """
    count = headers.get(b"x-stainless-retry-count", b"").decode("latin-1")
    if not (count.isascii() and count.isdigit() and len(count) <= _LONGEST_COUNT):
        return None
    session = headers.get(b"x-session-id", b"")
    owner = f"{caller.key_id} {caller.user_id} {caller.session_id} POST {path}\n".encode()
    digest = hashlib.sha256(owner + session + b"\n" + body)
    return RequestKey(f"sdk-{digest.hexdigest()}", digest.digest(), int(count))


def _scoped_key(caller: Caller, key: str) -> str:
    """Return the key, scoped to the end user or session of a caller who does not see all sessions.

    Otherwise the key of one user could return the response of another.
    """
    if caller.sees_all_sessions:
        return key
    owner = f"{caller.user_id} {caller.session_id} {key}"
    return "of-" + hashlib.sha256(owner.encode()).hexdigest()


Key = Annotated[RequestKey | None, Depends(_request_key)]


async def idempotent(  # noqa: PLR0913, PLR0917  # what a stored answer needs
    key: RequestKey | None,
    db: AsyncSession,
    caller: Caller,
    shape: type[BaseModel],
    work: Callable[[], Awaitable[object]],
    status: int = 201,
) -> Response:
    """Run `work` in the request's transaction and store its response, or replay the stored one.

    Raises `IdempotencyKeyReused` and what `work` raises; then nothing is stored for the key.
    """
    if key and (stored := await idempotency_keys.claim_for_response(db, caller.workspace_id, key)):
        first_status, first_body = stored
        return _json(first_body, first_status, {REPLAYED: "true"})
    made = await work()
    await db.flush()
    body = shape.model_validate(made).model_dump_json().encode()
    if key:
        await idempotency_keys.store_response(db, caller.workspace_id, key, status, body)
    return _json(body, status, {})


def _json(body: bytes, status: int, headers: dict[str, str]) -> Response:
    return Response(body, status, headers, media_type="application/json")

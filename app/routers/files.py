"""`/files`: upload, read and delete images and documents for messages."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

from fastapi import APIRouter, File, Request, Response, UploadFile

from app.http.deps import Caller, DatabaseDep, Files, ReadingDb
from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import Key, idempotent
from app.http.openapi import BINARY_SCHEMA
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.models import StoredFile
from app.schemas.files import FileRead
from app.services.files import rows

router = APIRouter(prefix="/files", tags=["files"], route_class=EndpointRoute)


@router.post("", response_model=FileRead, status_code=HTTPStatus.CREATED)
async def upload_file(
    file: Annotated[
        UploadFile,
        File(description="PNG, JPEG, WebP, GIF, PDF, DOCX, HTML, Markdown or text, up to 20 MB."),
    ],
    data: DatabaseDep,
    caller: Caller,
    files: Files,
    key: Key,
) -> Response:
    """Upload an image or a document, to be used in messages.

    What it is, its bytes say. A document is read now: the text of at most 50,000 tokens is what
    models are shown. A file that no message uses is deleted after 24 hours; others are deleted with
    the last session that uses them.
    """
    draft = await files.check(caller, file.filename or "", await file.read())
    await files.write(draft)
    async with data.transaction() as db:
        return await idempotent(key, db, caller, FileRead, lambda: files.add(db, draft))


@router.get("", response_model=list[FileRead])
async def list_files(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[StoredFile]:
    """List files, newest first; end users see those that they uploaded or have in a session."""
    listed = await rows.list_files(db, caller, before_id=cursor_id(cursor), limit=limit + 1)
    return link_next(request, response, listed, limit, lambda file: file.id)


@router.get("/{file_id}", response_model=FileRead)
async def get_file(file_id: UUID, db: ReadingDb, caller: Caller) -> StoredFile:
    """Get what is known of a file."""
    return await rows.get_file(db, caller, file_id)


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={
        200: {
            "content": {"application/octet-stream": {"schema": BINARY_SCHEMA}},
            "description": "The bytes, with the media type of the file",
        }
    },
)
async def get_file_content(
    file_id: UUID, data: DatabaseDep, caller: Caller, files: Files
) -> Response:
    """Get the bytes of a file, as they were uploaded."""
    async with data.reading() as db:
        file = await rows.get_file(db, caller, file_id, with_data=True)
    headers = {
        # A page of a stranger must not run with the rights of this server's own pages.
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    }
    return Response(await files.read(file), headers=headers, media_type=file.media_type)


@router.delete("/{file_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_file(file_id: UUID, caller: Caller, files: Files) -> None:
    """Delete a file that no message uses."""
    await files.delete(caller, file_id)

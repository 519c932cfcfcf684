"""An upload whose client leaves while it is looked at."""

import anyio
import httpx2
import pytest
from fastapi import APIRouter, FastAPI, UploadFile
from starlette.types import Receive, Scope, Send

from app.core.security import ADMIN
from app.http.endpoint_route import EndpointRoute

pytestmark = pytest.mark.anyio

TWO_MEGABYTES = bytes(2 << 20)
"""More than is kept in memory, so that a file is made."""


async def test_cancelled_upload_leaves_no_file_open() -> None:
    uploads: list[UploadFile] = []
    arrived = anyio.Event()

    async def look_for_ever(file: UploadFile) -> None:
        uploads.append(file)
        arrived.set()
        await anyio.sleep_forever()

    router = APIRouter(route_class=EndpointRoute)
    router.post("/files")(look_for_ever)
    application = FastAPI()
    application.include_router(router)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"caller": ADMIN}
        await application(scope, receive, send)

    transport = httpx2.ASGITransport(serve)
    async with (
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
        anyio.create_task_group() as tasks,
    ):
        files = {"file": ("large.bin", TWO_MEGABYTES)}
        tasks.start_soon(lambda: client.post("/files", files=files))
        await arrived.wait()
        tasks.cancel_scope.cancel()

    assert [upload.file.closed for upload in uploads] == [True]

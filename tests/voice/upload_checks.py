"""An upload check with a worker process of its own, for the tests of a module."""

from collections.abc import AsyncGenerator

import pytest

from app.core.errors import AppError
from app.core.security import ADMIN
from app.services.ports import Recording
from app.services.sandbox.sandbox import Sandbox
from app.services.voice.upload_check import WARM_UP, UploadCheck

_opened: list[UploadCheck] = []


@pytest.fixture(scope="module", name="anyio_backend")
def one_event_loop() -> str:
    """As the process of the module's sandbox belongs to its event loop."""
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
async def uploads(anyio_backend: str) -> AsyncGenerator[UploadCheck]:
    assert anyio_backend == "asyncio"
    async with Sandbox([WARM_UP]) as sandbox:
        check = UploadCheck(sandbox)
        _opened.append(check)
        yield check
        _opened.remove(check)


async def check_upload(data: bytes) -> Recording:
    return await _opened[-1].check(data, ADMIN)


async def answer(data: bytes) -> str:
    """Return `accepted`, or the code of the refusal."""
    try:
        await check_upload(data)
    except AppError as error:
        return error.code
    return "accepted"

"""The embedded engine with its real models, and a model hub of our own on loopback."""

import hashlib
import http.server
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from app.core.capabilities import Capability
from app.core.config import EmbeddedModels
from app.services.local_service import LocalEngine, WeightsUnavailable, ensure_weights
from app.services.local_service.engine import EmbeddedPackagesMissing, require_packages

ROOT = Path(__file__).parents[2]
DATA_DIR = Path(os.environ.get("MODELS_CACHE_DIR", ROOT / "data"))
MODELS = EmbeddedModels(os.environ.get("EMBEDDED_TEST_SET", "small"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def embedded_weights() -> EmbeddedModels:
    try:
        require_packages(list(Capability))
        ensure_weights(MODELS, data_dir=DATA_DIR)
    except (WeightsUnavailable, EmbeddedPackagesMissing) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no embedded models here: {' '.join(str(error).split())[:400]}")
    return MODELS


@pytest.fixture(scope="session")
async def engine(embedded_weights: EmbeddedModels) -> AsyncGenerator[LocalEngine]:
    async with LocalEngine(models=embedded_weights, data_dir=DATA_DIR) as engine:
        await engine.wait_until_ready()
        yield engine


@dataclass(slots=True)
class Hub:
    """Files by path; `cut_after` breaks off the next answer, `ranges` records what was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    cut_after: int | None = None
    honours_ranges: bool = True
    ranges: list[str | None] = field(default_factory=list[str | None])


class HubServer(http.server.ThreadingHTTPServer):
    hub: Hub


class HubHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hub = cast("HubServer", self.server).hub
        data = hub.files.get(self.path)
        asked = self.headers.get("Range")
        hub.ranges.append(asked)
        if data is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and hub.honours_ranges:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            start = 0
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end, hub.cut_after = hub.cut_after, None
        self.wfile.write(data[start:end])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
        """Keep the test's output quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with HubServer(("127.0.0.1", 0), HubHandler) as server:
        server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.hub
        server.shutdown()
        thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

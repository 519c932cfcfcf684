"""The metrics of all workers from any of them: each listens on a socket in a shared folder.

The kernel chooses which worker answers a request for `/metrics`; that one asks the others. A worker
that has ended no longer answers, and its socket is removed.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio.to_thread
import orjson

from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 2.0


_shared_folder: Path | None = None


def share_metrics(folder: Path) -> None:
    """Let the processes that are forked from this one share their metrics in `folder`."""
    global _shared_folder  # noqa: PLW0603  # what a fork inherits
    _shared_folder = folder


class MetricsOfWorkers:
    """Joins the metrics of this process and, in a shared folder, of its siblings."""

    def __init__(self, metrics: Metrics, folder: Path | None = None) -> None:
        """Without `folder` it is that of `share_metrics`, if there are several processes."""
        self._metrics = metrics
        self._folder = folder or _shared_folder

    async def render(self) -> bytes:
        """Return Prometheus's text."""
        await anyio.to_thread.run_sync(_load_exposition)
        from app.telemetry import exposition

        families = {str(os.getpid()): exposition.families_of(self._metrics)}
        if self._folder:
            own = self._socket_path(self._folder)
            others = [path for path in self._folder.glob("*.sock") if path != own]
            answers = await asyncio.gather(*(_ask(path) for path in others))
            for path, answer in zip(others, answers, strict=True):
                if answer is not None:
                    families[path.stem] = answer
        return exposition.render(families, names_workers=self._folder is not None)

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Answer siblings while the block runs."""
        if self._folder is None:
            yield
            return
        path = self._socket_path(self._folder)
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await anyio.to_thread.run_sync(_load_exposition)
            from app.telemetry import exposition

            writer.write(orjson.dumps(exposition.families_of(self._metrics)))
            await writer.drain()
        except OSError:
            logger.debug("a sibling did not read the metrics")
        finally:
            writer.close()

    @staticmethod
    def _socket_path(folder: Path) -> Path:
        return folder / f"{os.getpid()}.sock"


async def _ask(path: Path) -> list[dict[str, object]] | None:
    """Return a sibling's metrics; `None` where it does not answer."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                answer = await reader.read(-1)
            finally:
                writer.close()
        return orjson.loads(answer)
    except (ConnectionRefusedError, FileNotFoundError):
        with suppress(OSError):
            path.unlink(missing_ok=True)  # noqa: ASYNC240  # in memory; of a worker that was killed
    except (OSError, TimeoutError, orjson.JSONDecodeError):
        logger.warning("a worker did not tell its metrics")
    return None


def _load_exposition() -> None:
    from app.telemetry import exposition

    _ = exposition

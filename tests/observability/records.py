"""The log as an operator has it: JSON lines of level info and above, and nothing else."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import orjson
from typing_extensions import override

from app.core.logging import JsonFormatter

Line = dict[str, Any]


class Lines(logging.Handler):
    """Collects what the process would write to standard error."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JsonFormatter())
        self.text: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self.text.append(self.format(record))

    @property
    def all(self) -> list[Line]:
        return [orjson.loads(line) for line in self.text]

    def named(self, message: str) -> list[Line]:
        return [line for line in self.all if line["message"].startswith(message)]


def wait_for_lines(client: httpx2.AsyncClient) -> None:
    """Let each response of `client` wait until its line is written, which comes soon after it."""

    async def wait(_response: httpx2.Response) -> None:
        await anyio.lowlevel.checkpoint()

    client.event_hooks = {"response": [wait]}


@contextmanager
def logged() -> Generator[Lines]:
    """Collect the lines of the block."""
    lines, logger = Lines(), logging.getLogger("app")
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)

"""How the process logs: one line per record to standard error; no message text, key or token.

A record's further facts are `extra=log_fields(...)`. Both formats add the ids of the request, trace
and turn that the record belongs to.
"""

import logging
import re
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, TextIO

import orjson
from typing_extensions import override

from app.core.request_context import current_context

_FIELDS: Final = "fields"
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.:/@+*{}-]")


class LogFormat(StrEnum):
    """How a record is written."""

    TEXT = "text"
    """A line for people: the message, then `name=value` pairs."""
    JSON = "json"
    """A JSON object per line."""


def log_fields(**fields: Any) -> dict[str, Any]:
    """Return the `extra` of a log call; fields that are `None` are left out of the line."""
    return {_FIELDS: fields}


class FrequentLogLine:
    """One kind of line that is written so often that its cost counts: a third of a log call's."""

    def __init__(self, logger: logging.Logger, level: int, message: str) -> None:
        self._logger = logger
        self._level = level
        self._template = logger.makeRecord(logger.name, level, "", 0, message, (), None).__dict__

    def write(self, fields: dict[str, Any]) -> None:
        """Log a record with these facts; those that are `None` are left out."""
        logger = self._logger
        if logger.isEnabledFor(self._level):
            record = logging.LogRecord.__new__(logging.LogRecord)
            record.__dict__.update(self._template)
            record.created = time.time()
            record.__dict__[_FIELDS] = fields
            logger.handle(record)


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object on one line."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        _add_facts(line, record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class TextFormatter(logging.Formatter):
    """Writes a record as a line for people. A traceback follows on lines of its own."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {}
        _add_facts(facts, record)
        line = (
            f"{_timestamp(record.created)} {record.levelname:<7} {record.name}: "
            f"{record.getMessage()}{_pairs(facts)}"
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


@lru_cache(maxsize=4)
def _second(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _timestamp(created: float) -> str:
    second = int(created)
    return f"{_second(second)}.{int((created - second) * 1000):03}Z"


def _add_facts(line: dict[str, Any], record: logging.LogRecord) -> None:
    fields: dict[str, Any] | None = record.__dict__.get(_FIELDS)
    if fields:
        line.update({name: value for name, value in fields.items() if value is not None})
    context = current_context()
    if context is None:
        return
    if context.request_id and "request_id" not in line:
        line["request_id"] = context.request_id
    if context.turn_id and "turn_id" not in line:
        line["turn_id"] = str(context.turn_id)
    if context.trace_id and "trace_id" not in line:
        line["trace_id"] = context.trace_id


def _pairs(facts: dict[str, Any]) -> str:
    """Return ` name=value` of each fact; a value that is not one plain word is quoted."""
    texts = [str(value) for value in facts.values()]
    if "" in texts or _NOT_PLAIN.search("".join(texts)):  # one search for nearly all records
        texts = [_quoted(text) if not text or _NOT_PLAIN.search(text) else text for text in texts]
    return "".join([f" {name}={text}" for name, text in zip(facts, texts, strict=True)])


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes lines to standard error, which Python flushes at the end of each line."""

    @override
    def flush(self) -> None:
        """Do nothing."""


def configure_logging(level: str, log_format: LogFormat = LogFormat.TEXT) -> None:
    """Set up logging for the whole process; `level` is a name in small letters."""
    stderr = _StderrHandler()
    stderr.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    levels = {None: "WARNING", "app": level.upper(), "uvicorn": "INFO", "uvicorn.access": "WARNING"}
    for name, its_level in levels.items():
        logger = logging.getLogger(name)
        logger.setLevel(its_level)
        logger.handlers[:] = [stderr] if name in {None, "uvicorn"} else []
    logging.getLogger("uvicorn").propagate = False
    # Nothing shows these, and they are a quarter of what a record costs.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False


def describe_cause(error: BaseException) -> str | None:
    """Name what an error came from, without its words: types, and the codes of databases.

    Follows `__cause__` and `__context__` to the end, as `from None` hides a cause without losing
    it.
    """
    names: list[str] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        cause = current.__cause__ or current.__context__ or getattr(current, "orig", None)
        current = cause if isinstance(cause, BaseException) else None
        if current is not None:
            name = type(current).__name__
            code = getattr(current, "sqlite_errorname", None) or getattr(current, "sqlstate", None)
            names.append(f"{name} {code}" if code else name)
    return " < ".join(dict.fromkeys(names[:4])) or None

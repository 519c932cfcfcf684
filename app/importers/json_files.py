"""JSON files of any size, one record at a time: arrays, JSON lines, members of one object."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import ijson
import orjson

from app.importers.records import ImportReport, SourceInvalid

_LONGEST_LINE_BYTES = 64 << 20
"""What is longer is no line of JSON lines, but a document without line breaks."""


def files_of(path: Path) -> list[Path]:
    """Return the file, or the JSON files of a folder in the order of their names."""
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.suffix in {".json", ".jsonl", ".af"})


def records_of(
    path: Path, *members: str, report: ImportReport | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the objects of an array, of JSON lines, or of an object's arrays `members`.

    An object without any of them is one record. `report` is told how much is read. Raises
    `SourceInvalid`.
    """
    before = report.read_bytes if report else 0
    with path.open("rb") as file:
        for record in _records(file, path, members):
            if report:
                report.read_bytes = before + file.tell()
            yield record


def members_of(path: Path, member: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of one array of the file's object; nothing for files of other forms."""
    with path.open("rb") as file:
        if _first_byte(file) == b"{" and not _has_lines(file):
            yield from _items(file, path, f"{member}.item")


def _records(file: BinaryIO, path: Path, members: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    first = _first_byte(file)
    if first == b"[":
        yield from _items(file, path, "item")
    elif first == b"{" and _has_lines(file):
        yield from _lines(file, path)
    elif first == b"{":
        yield from _members(file, path, members)
    elif first:
        raise SourceInvalid(f"{path}: neither a JSON array, an object nor JSON lines.")


def _members(file: BinaryIO, path: Path, members: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    count = 0
    for member in members:
        for record in _items(file, path, f"{member}.item"):
            count += 1
            yield record
    if not count:
        yield from _items(file, path, "")


def _items(file: BinaryIO, path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    _rewind(file)
    items: Any = ijson.items(file, prefix, use_float=True)
    number = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SourceInvalid(f"{path}: broken after record {number}: {reason}") from None
        number += 1
        if not isinstance(item, dict):
            raise SourceInvalid(f"{path}: record {number} is not a JSON object.")
        yield cast("dict[str, Any]", item)


def _lines(file: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    _rewind(file)
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record: object = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise SourceInvalid(f"{path}: line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise SourceInvalid(f"{path}: line {number} is not a JSON object.")
        yield cast("dict[str, Any]", record)


def _first_byte(file: BinaryIO) -> bytes:
    _rewind(file)
    while (byte := file.read(1)).isspace():
        pass
    return byte


def _rewind(file: BinaryIO) -> None:
    """Go to the beginning, behind a byte order mark."""
    file.seek(0)
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)


def _has_lines(file: BinaryIO) -> bool:
    """Tell whether the first line is a whole JSON object, and others follow it or it is short."""
    _rewind(file)
    line = file.readline(_LONGEST_LINE_BYTES)
    try:
        record: object = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    is_last = not file.read(1)
    if not isinstance(record, dict):
        return False
    names = set(cast("dict[str, object]", record))
    return not (is_last and {"threads", "agents"} & names)

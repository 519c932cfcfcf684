"""Base classes of schemas: strict requests, and text types that every database can store."""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, cast

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

_METADATA_BYTES = 16 * 1024
_BLANK = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]*\Z")
"""Spaces, and characters of no width."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""Its escape: not one whose backslash is itself escaped."""
MOST_LEVELS = 100
"""Of objects and lists in one another; what writes JSON refuses about 255."""


def has_nul(encoded: bytes) -> bool:
    """Return whether JSON has the NUL character in a text, which PostgreSQL does not store."""
    return b"\\u0000" in encoded and _NUL.search(encoded) is not None


def _refuse_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without lone surrogates") from None
    return text


def _refuse_blank(text: str) -> str:
    if _BLANK.match(text):
        raise ValueError("must not be blank")
    return text


def _refuse_unstorable(metadata: dict[str, Any]) -> dict[str, Any]:
    if levels_of(metadata) > MOST_LEVELS:
        raise ValueError(f"must have at most {MOST_LEVELS} levels")
    encoded = orjson.dumps(metadata)
    if len(encoded) > _METADATA_BYTES:
        raise ValueError(f"must be at most {_METADATA_BYTES} bytes of JSON")
    if has_nul(encoded):
        raise ValueError("must not contain the NUL character")
    return metadata


def storable_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object that every database can store and every writer write.

    Raises `ValueError`.
    """
    if levels_of(value) > MOST_LEVELS:
        raise ValueError(f"must have at most {MOST_LEVELS} levels")
    if has_nul(orjson.dumps(value)):
        raise ValueError("must not contain the NUL character")
    return value


def levels_of(value: object) -> int:
    """Return how deep a JSON value is."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in cast("Iterable[object]", each.values() if isinstance(each, dict) else each)
        ]
    return depth - 1


def storable(moment: datetime) -> datetime:
    """Return a time that any database can hold in UTC. Raises `ValueError`."""
    if not 1 < moment.year < 9999:  # noqa: PLR2004  # no zone may carry it beyond
        raise ValueError("must be a time between the years 2 and 9998")
    return moment


UNION_TAGS = frozenset(("(text)", "(parts)"))
"""Names of the shapes of a field that has several; they are no part of a fault's place."""


Text = Annotated[str, AfterValidator(_refuse_nul)]
NonBlank = Annotated[Text, AfterValidator(_refuse_blank)]
Name = Annotated[NonBlank, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Metadata = Annotated[dict[str, Any], AfterValidator(_refuse_unstorable)]


class Request(BaseModel):
    """Base of request bodies; unknown fields are refused, since they are typing mistakes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def omit_defaults(schema: dict[str, Any]) -> None:
    """Remove the defaults of a change's JSON schema: clients would send them, and change fields."""
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class Changes(Request):
    """A change of a resource: its other fields may come too, as they were; see `changeable`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra=omit_defaults)


class Response(BaseModel):
    """Base of response bodies, built from rows; no field has a default, so none is optional."""

    model_config = ConfigDict(
        from_attributes=True, json_schema_serialization_defaults_required=True
    )

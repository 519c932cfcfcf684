"""Grammars that make the embedded model write JSON by a schema.

llama.cpp is built with llguidance, which takes a JSON Schema. It leaves the model free where it
does not know a keyword, and large bounds cost gigabytes; so both are left out, and a grammar may
allow more than its schema. Whoever asks validates the answer.
"""

from collections.abc import Mapping
from typing import Any, cast

import orjson

_KEPT = frozenset(("type", "required", "enum", "const", "$ref", "pattern"))
_NUMBERS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
_MOST = {"minItems": 100, "maxItems": 100, "minLength": 1000, "maxLength": 1000}
"""Larger bounds of lengths are left out."""
_IN_MAPS = ("properties", "$defs", "definitions")
_COMPOSED = frozenset(("anyOf", "oneOf", "allOf", "$ref", "if", "patternProperties"))
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As models write JSON on one line; other whitespace lets small ones go on with it for ever."""


def json_grammar(schema: Mapping[str, Any]) -> str:
    """Return the grammar of JSON that keeps what is known of `schema`."""
    text = orjson.dumps({**_reduced(schema), "x-guidance": _STYLE}).decode()
    return f"%llguidance {{}}\nstart: %json {text}"


def _reduced(schema: Mapping[str, Any]) -> dict[str, Any]:
    reduced: dict[str, Any] = {}
    keyword: str
    value: Any
    for keyword, value in schema.items():
        if _is_kept(keyword, value):
            reduced[keyword] = value
        elif keyword in _IN_MAPS:
            reduced[keyword] = {name: _child(each) for name, each in value.items()}
        elif keyword in {"items", "additionalProperties"}:
            reduced[keyword] = _child(value)
        elif keyword == "prefixItems":
            reduced[keyword] = [_child(each) for each in value]
        elif keyword in {"anyOf", "oneOf"} and "anyOf" not in reduced:
            reduced["anyOf"] = [_child(each) for each in value]
    names = schema.get("properties", {})
    is_plain = not schema.keys() & _COMPOSED and set(schema.get("required", ())) <= set(names)
    if names and is_plain and "additionalProperties" not in schema:
        reduced["additionalProperties"] = False  # small models would invent one after the other
    return reduced


def _child(schema: object) -> object:
    return _reduced(cast("dict[str, Any]", schema)) if isinstance(schema, dict) else schema


def _is_kept(keyword: str, value: Any) -> bool:  # noqa: ANN401  # JSON
    if keyword in _NUMBERS:
        return abs(value) < 1 << 53
    if keyword in _MOST:
        return value <= _MOST[keyword]
    return keyword in _KEPT

"""JSON Schemas (2020-12) of tools: what is accepted, and validation in bounded time.

A schema may be hostile: its owner and the server's other users are different people. So patterns
run in an engine without backtracking, nothing is fetched, references are local and not recursive,
and the schema is small even where every reference is replaced by what it refers to. A value for
which it may still take long is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

import orjson

from app.core.value_objects import value_object
from app.services.tools.errors import SchemaNotSupported
from app.services.tools.schema_costs import (
    SchemaSize,
    own_size,
    size_of_value,
    with_unevaluated,
)

MAX_SCHEMA_BYTES = 32 * 1024
MAX_SCHEMA_DEPTH = 10
MAX_EXPANDED_SCHEMAS = 2000
"""With every reference replaced."""
_MAX_JSON_LEVELS = 64
_MAX_PATTERN_CHARACTERS = 500
_PATTERN_BYTES = 256 * 1024
"""Of a compiled pattern."""
_MAX_FAULTS = 10
_MAX_LISTED = 200_000
"""The most that the messages of all faults may have in them."""
_MAX_CHECKS = 40_000_000
"""Of one value; it takes the better part of a second."""
_CHECKS_OF_STEP = 2
_SCHEMA_2020_12 = "https://json-schema.org/draft/2020-12/schema"

_IN_MAPS = ("properties", "patternProperties", "$defs", "dependentSchemas", "definitions")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema",
)  # fmt: skip
_REFUSED = {
    "$id": "schemas have no address of their own",
    "$anchor": "use a JSON Pointer in `$ref`",
    "$dynamicRef": "use `$ref`",
    "$dynamicAnchor": "use `$ref`",
    "$recursiveRef": "use `$ref`",
    "$recursiveAnchor": "use `$ref`",
    "$vocabulary": "only JSON Schema 2020-12 is supported",
}

Schema = Mapping[str, Any]


@value_object(frozen=True, slots=True)
class SchemaFault:
    """Where a value breaks a schema, as a JSON Pointer, and the rule; never the value."""

    path: str
    rule: str


def check_schema(schema: object, *, what: str, is_object: bool = True) -> None:
    """Raise `SchemaNotSupported`, which names the keyword and its place in `what`, if need be.

    With `is_object` the schema must say `"type": "object"` at its top.
    """
    if not isinstance(schema, dict):
        raise SchemaNotSupported(f"`{what}` must be a JSON Schema: an object.")
    schema = cast("dict[str, Any]", schema)
    if levels(schema) > _MAX_JSON_LEVELS:
        raise SchemaNotSupported(f"`{what}` has more than {_MAX_JSON_LEVELS} levels.")
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise SchemaNotSupported(f"`{what}` has more than {MAX_SCHEMA_BYTES // 1024} KB of JSON.")
    if is_object and schema.get("type") != "object":
        raise _unsupported(what, "", "type", 'it must be "object"')
    _Check(schema, what).run()
    _compile(schema, what)


class SchemaValidator:
    """Validates values by a schema that `check_schema` accepted."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._validator = _compile(schema, "schema")
        self._size = _Check(dict(schema), "schema").size()

    def faults(self, value: object) -> tuple[SchemaFault, ...]:
        """Return up to 10 places where `value`, as parsed from JSON, breaks the schema.

        Where value and schema are both large, one fault stands for all; where they are so large
        that nothing else would run meanwhile, the value is not looked at.
        """
        size = size_of_value(value)
        steps = _CHECKS_OF_STEP * size.characters * self._size.steps
        if size.parts * self._size.checks + steps > _MAX_CHECKS:
            return (SchemaFault("", "the value is too large to be checked by this schema"),)
        if self._validator.is_valid(value):
            return ()
        # The package makes an error for each branch at each place before it yields the first.
        if size.parts * self._size.listed + steps > _MAX_LISTED:
            return (SchemaFault("", "the value does not match the schema"),)
        found: dict[SchemaFault, None] = {}
        for error in self._validator.iter_errors(value):
            rule = _rule(self._schema, [*error.schema_path])
            found[SchemaFault(_pointer([*error.instance_path]), rule)] = None
            if len(found) == _MAX_FAULTS:
                break
        return tuple(found)


def _compile(schema: Schema, what: str) -> Any:  # noqa: ANN401  # of a package that is loaded here
    from jsonschema_rs import Draft202012Validator, ReferencingError, RegexOptions, ValidationError

    try:
        return Draft202012Validator(
            dict(schema),
            pattern_options=RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES),
            validate_formats=False,
            retriever=_refuse_to_retrieve,
        )
    except ValidationError as error:
        *place, keyword = [*error.instance_path] or [""]
        raise _unsupported(what, _pointer(place), str(keyword), "it has no valid value") from None
    except (ReferencingError, ValueError):
        raise SchemaNotSupported(f"`{what}` has a `$ref` that leads nowhere.") from None


def _refuse_to_retrieve(uri: str) -> Any:  # noqa: ANN401  # as the package passes it
    raise ValueError(f"schemas are never fetched: {len(uri)} characters")


class _Check:
    """Walks through a schema once, with its references."""

    def __init__(self, root: dict[str, Any], what: str) -> None:
        self._root = root
        self._what = what
        self._sizes: dict[int, SchemaSize] = {}
        """Of each that was walked, with references replaced."""
        self._open: set[int] = set()

    def size(self) -> SchemaSize:
        """Return the size, with references replaced.

        Raises `SchemaNotSupported` for the first fault.
        """
        return self._walk(self._root, "", 1)

    def run(self) -> None:
        """Raise `SchemaNotSupported` for the first fault, or for the size."""
        if self.size().schemas > MAX_EXPANDED_SCHEMAS:
            raise SchemaNotSupported(
                f"`{self._what}` has more than {MAX_EXPANDED_SCHEMAS} schemas in it, once every "
                "`$ref` is replaced."
            )

    def _walk(self, schema: object, place: str, depth: int) -> SchemaSize:
        if not isinstance(schema, dict):
            if isinstance(schema, bool):
                return SchemaSize(1, 1, 1)
            raise self._refusal(place, "", "a schema is an object, true or false")
        schema = cast("dict[str, Any]", schema)
        if depth > MAX_SCHEMA_DEPTH:
            raise self._refusal(place, "", f"schemas are nested more than {MAX_SCHEMA_DEPTH} deep")
        key = id(schema)
        if key in self._open:
            raise self._refusal(place, "$ref", "recursive schemas are not supported")
        if key in self._sizes:
            return self._sizes[key]
        self._open.add(key)
        self._check_keywords(schema, place)
        size = own_size(schema)
        for child, where in _children(schema):
            size = size.plus(self._walk(child, f"{place}/{where}", depth + 1))
        if "$ref" in schema:
            target = self._target(schema["$ref"], place)
            size = size.plus(self._walk(target, f"{place}/$ref", depth))
        self._open.discard(key)
        self._sizes[key] = size = with_unevaluated(schema, size)
        return size

    def _check_keywords(self, schema: dict[str, Any], place: str) -> None:
        for keyword, advice in _REFUSED.items():
            if keyword in schema:
                raise self._refusal(place, keyword, advice)
        dialect = schema.get("$schema", _SCHEMA_2020_12)
        if not isinstance(dialect, str) or dialect.rstrip("#") != _SCHEMA_2020_12:
            raise self._refusal(place, "$schema", "only JSON Schema 2020-12 is supported")
        if isinstance(schema.get("items"), list):
            raise self._refusal(place, "items", "a list of schemas is `prefixItems` in 2020-12")
        for pattern, where in _patterns(schema):
            if len(pattern) > _MAX_PATTERN_CHARACTERS:
                raise self._refusal(
                    place, where, f"patterns have at most {_MAX_PATTERN_CHARACTERS} characters"
                )

    def _target(self, reference: object, place: str) -> object:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise self._refusal(place, "$ref", "only references within the schema are followed")
        target: Any = self._root
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            raise self._refusal(place, "$ref", "it must be a JSON Pointer")
        for step in pointer.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and name in target:
                target = cast("dict[str, Any]", target)[name]
            elif (
                isinstance(target, list)
                and name.isdecimal()
                and int(name) < len(cast("list[Any]", target))
            ):
                target = cast("list[Any]", target)[int(name)]
            else:
                raise self._refusal(place, "$ref", "it leads nowhere")
        return target

    def _refusal(self, place: str, keyword: str, advice: str) -> SchemaNotSupported:
        return _unsupported(self._what, place, keyword, advice)


def _children(schema: dict[str, Any]) -> Iterator[tuple[object, str]]:
    for keyword in _IN_MAPS:
        members = schema.get(keyword, {})
        if isinstance(members, dict):
            for name, child in cast("dict[str, object]", members).items():
                yield child, f"{keyword}/{_escaped(name)}"
    for keyword in _IN_LISTS:
        members = schema.get(keyword, [])
        if isinstance(members, list):
            for number, child in enumerate(cast("list[object]", members)):
                yield child, f"{keyword}/{number}"
    for keyword in _SINGLE:
        if keyword in schema:
            yield schema[keyword], keyword


def _patterns(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(schema.get("pattern"), str):
        yield schema["pattern"], "pattern"
    named = schema.get("patternProperties")
    if isinstance(named, dict):
        for pattern in cast("dict[str, object]", named):
            yield pattern, "patternProperties"


def _rule(schema: Schema, path: Sequence[str | int]) -> str:
    """Return the rule at `path` of the schema: its keyword and, where it is short, its value."""
    value: Any = schema
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):  # behind a reference
            return str(path[-1])
    keyword = str(path[-1]) if path else "false"
    shown = orjson.dumps(value).decode()
    return f"{keyword}: {shown}" if len(shown) <= 200 else keyword  # noqa: PLR2004


def _pointer(path: Sequence[str | int]) -> str:
    return "".join(f"/{_escaped(str(step))}" for step in path)[:300]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def levels(value: object) -> int:
    """Return how deep a JSON value is."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in cast("Any", each.values() if isinstance(each, dict) else each)
        ]
    return depth - 1


def _unsupported(what: str, place: str, keyword: str, advice: str) -> SchemaNotSupported:
    named = f"`{keyword}` at `{what}{place}`" if keyword else f"The schema at `{what}{place}`"
    return SchemaNotSupported(f"{named} is not supported: {advice}.")

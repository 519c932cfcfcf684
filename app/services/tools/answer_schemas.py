"""Schemas of answers: the shape that providers can enforce, and validation of what a model wrote.

Whatever a provider promises, its answer is validated here.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import orjson

from app.core.value_objects import value_object
from app.services.tools.errors import SchemaNotSupported
from app.services.tools.schemas import SchemaFault, SchemaValidator, check_schema, levels

MAX_ANSWER_CHARACTERS = 256 * 1024
_MAX_LEVELS = 100
"""Of objects and lists in one another; what writes JSON refuses about 255."""
_MAX_CACHED = 200
_STRICT_KEYWORDS = frozenset(
    (
        "$schema", "title", "description", "type", "properties", "required", "additionalProperties",
        "items", "enum", "const", "anyOf", "$ref", "$defs", "pattern", "multipleOf", "minimum",
        "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems",
    )
)  # fmt: skip
_MAX_STRICT_PROPERTIES = 5000

Schema = Mapping[str, Any]


@value_object(frozen=True, slots=True)
class AnswerSchema:
    """A schema of answers, compiled."""

    validator: SchemaValidator
    is_strict: bool
    """True where it has the shape that providers can enforce."""

    def read(self, text: str) -> tuple[Any, tuple[SchemaFault, ...]]:
        """Return the value that `text` is, and where it breaks the schema: nowhere if it is valid.

        The value is `None` for text that is not JSON.
        """
        if len(text) > MAX_ANSWER_CHARACTERS:
            limit = f"at most {MAX_ANSWER_CHARACTERS // 1024} KB"
            return None, (SchemaFault("", f"the answer has {limit}"),)
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None, (SchemaFault("", "the answer is one JSON value and nothing else"),)
        if levels(value) > _MAX_LEVELS:
            return None, (SchemaFault("", f"the answer has at most {_MAX_LEVELS} levels"),)
        return value, self.validator.faults(value)


def answer_schema(schema: Schema) -> AnswerSchema:
    """Return a checked schema, compiled; the newest 200 are remembered."""
    return _compiled(orjson.dumps(schema))


@lru_cache(maxsize=_MAX_CACHED)
def _compiled(schema_json: bytes) -> AnswerSchema:
    schema = orjson.loads(schema_json)
    return AnswerSchema(SchemaValidator(schema), strict_problem(schema) is None)


def check_answer_schema(schema: object, *, what: str, is_strict: bool | None = None) -> None:
    """Raise `SchemaNotSupported` for a schema that no answer is asked by.

    With `is_strict` it must have the shape that providers can enforce.
    """
    check_schema(schema, what=what)
    if is_strict and (problem := strict_problem(cast("Schema", schema))):
        raise SchemaNotSupported(f"`{what}` is not of the shape that `strict` needs: {problem}")


def strict_problem(schema: Schema) -> str | None:
    """Return what keeps a checked schema from the strict shape, in one sentence, or `None`.

    In that shape every object names all of its properties, requires them and allows no others,
    and only some keywords are used.
    """
    if "anyOf" in schema or "$ref" in schema:
        return "at the top there is neither `anyOf` nor `$ref`."
    count = 0
    for place, each in _schemas(schema, ""):
        problem = _problem_of_one(each)
        if problem:
            return f"at `{place}` {problem}."
        count += len(each.get("properties", ()))
    if count > _MAX_STRICT_PROPERTIES:
        return f"there are at most {_MAX_STRICT_PROPERTIES} properties."
    return None


def _problem_of_one(schema: Any) -> str | None:  # noqa: ANN401  # JSON
    if not isinstance(schema, dict):
        return "there must be an object"
    members = cast("dict[str, Any]", schema)
    if unknown := members.keys() - _STRICT_KEYWORDS:
        return f"`{min(unknown)}` is not allowed"
    if members.get("type") == "object" or "properties" in members:
        if members.get("additionalProperties") is not False:
            return "`additionalProperties` must be false"
        if set(members.get("required", ())) != set(members.get("properties", ())):
            return "`required` must name every property"
    return None


def _schemas(schema: Any, place: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  # JSON
    yield place or "/", schema
    if not isinstance(schema, dict):
        return
    members = cast("dict[str, Any]", schema)
    for keyword in ("properties", "$defs"):
        for name, child in members.get(keyword, {}).items():
            yield from _schemas(child, f"{place}/{keyword}/{name}")
    for number, child in enumerate(members.get("anyOf", ())):
        yield from _schemas(child, f"{place}/anyOf/{number}")
    if "items" in members:
        yield from _schemas(members["items"], f"{place}/items")

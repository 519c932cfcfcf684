"""Read `response_format` of chat completions, and `text.format` of responses."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from app.http.answer_format import answer_format_of
from app.http.openai_errors import InvalidParameter
from app.schemas.answers import ResponseFormatFields
from app.services.tools.errors import SchemaNotSupported
from app.services.turns.records import AnswerFormat

_ANY_OBJECT: dict[str, Any] = {"name": "answer", "schema": {"type": "object"}, "strict": False}
_FIELDS = ("name", "schema", "strict")


def answer_format(form: object, place: str, schema_field: str = "") -> AnswerFormat | None:
    """Return what the answer must be; `None` for text. Raises `InvalidParameter`.

    `place` names `form` in the request. Name and schema are in its `schema_field`, or in itself.
    """
    if form is None:
        return None
    if not isinstance(form, dict):
        raise InvalidParameter(place, "It must be an object with a `type`.")
    fields = cast("dict[str, Any]", form)
    kind = fields.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _format_of(_ANY_OBJECT, place)
    if kind != "json_schema":
        raise InvalidParameter(
            f"{place}.type", "It must be `text`, `json_object` or `json_schema`.", "invalid_value"
        )
    place = f"{place}.{schema_field}" if schema_field else place
    definition = fields.get(schema_field) if schema_field else fields
    if not isinstance(definition, dict):
        raise InvalidParameter(place, "It must be an object with a `name` and a `schema`.")
    return _format_of(cast("dict[str, Any]", definition), place)


def _format_of(definition: Mapping[str, Any], place: str) -> AnswerFormat | None:
    given = {name: definition[name] for name in _FIELDS if name in definition}
    if isinstance(given.get("schema"), dict):  # SDKs name drafts that differ in nothing they use
        schema = cast("dict[str, Any]", given["schema"])
        given["schema"] = {key: value for key, value in schema.items() if key != "$schema"}
    try:
        return answer_format_of(ResponseFormatFields(type="json_schema", **given))
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise InvalidParameter(f"{place}.{field}", f"{problem['msg']}.") from None
    except SchemaNotSupported as error:
        raise InvalidParameter(f"{place}.schema", error.detail) from None

"""`response_format` of a request, checked, as the turn engine takes it."""

from app.schemas.answers import ResponseFormatFields
from app.services.ports import ResponseFormat
from app.services.tools.answer_schemas import answer_schema, check_answer_schema
from app.services.turns import AnswerFormat

_WHERE = "response_format.schema"


def answer_format_of(fields: ResponseFormatFields | None) -> AnswerFormat | None:
    """Return what the answer must be; `None` for what the agent says.

    Raises `SchemaNotSupported`, also where `strict` wants a shape that the schema has not.
    """
    if fields is None:
        return None
    check_answer_schema(fields.schema_, what=_WHERE, is_strict=fields.strict)
    is_strict = fields.strict
    if is_strict is None:
        is_strict = answer_schema(fields.schema_).is_strict
    return AnswerFormat(ResponseFormat(fields.name, fields.schema_, is_strict), fields.speak)

"""Let clients send back what they were given: read-only fields, as long as they are unchanged."""

from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from app.http.problems import RequestInvalid, invalid_request
from app.schemas.base import Request


def changeable(body: Request, current: BaseModel) -> dict[str, Any]:
    """Return the fields of `body` that may change. Raises `RequestInvalid`.

    `body` allows extra fields, which must equal those of `current`, the resource as it is.
    """
    shape = type(current)
    for name, given in (body.model_extra or {}).items():
        field = shape.model_fields.get(name)
        if field is None:
            raise _refusal(name, "extra_forbidden", "", tuple(type(body).model_fields))
        try:
            expected: Any = field.annotation
            is_same = TypeAdapter[Any](expected).validate_python(given) == getattr(current, name)
        except ValidationError:
            is_same = False
        if not is_same:
            raise _refusal(name, "read_only", "is read-only and cannot be changed")
    return body.model_dump(include=body.model_fields_set & set(type(body).model_fields))


def _refusal(name: str, kind: str, message: str, known: tuple[str, ...] = ()) -> RequestInvalid:
    return invalid_request([{"type": kind, "loc": ("body", name), "msg": message}], known)

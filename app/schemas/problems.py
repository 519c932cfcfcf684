"""Schemas of errors: problem documents (RFC 9457)."""

from pydantic import BaseModel


class FieldProblem(BaseModel):
    """The error of one field; the input is never echoed."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(BaseModel):
    """An error as `application/problem+json`; every `code` is stable and documented."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldProblem] | None = None
    turn_id: str | None = None

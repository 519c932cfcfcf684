"""Errors on the wire: problem documents (RFC 9457)."""

from pydantic import BaseModel


class FieldProblem(BaseModel):
    """What is wrong with one field; the input itself is never echoed."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(BaseModel):
    """`application/problem+json`; `code` never changes, and is explained in the documentation."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldProblem] | None = None
    turn_id: str | None = None

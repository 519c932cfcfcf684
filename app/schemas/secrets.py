"""Schemas of secrets."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from app.core.hosts import normalized_host
from app.schemas.base import Request, Response

SECRET_NAME = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"  # noqa: S105  # a pattern
_SHORTEST, _LONGEST = 8, 8192


def _sendable(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not _SHORTEST <= len(text) <= _LONGEST:
        raise ValueError(f"must have {_SHORTEST} to {_LONGEST} characters")
    if not all(each.isprintable() or each in "\n\t" for each in text):
        raise ValueError("must hold no control characters but line feeds and tabs")
    return value


def _without_repetition(hosts: list[str]) -> list[str]:
    return list(dict.fromkeys(hosts))


SecretName = Annotated[str, StringConstraints(pattern=SECRET_NAME)]
Host = Annotated[str, AfterValidator(normalized_host)]


class SecretCreate(Request):
    """A secret to store; the one of the same name is replaced."""

    name: SecretName = Field(examples=["SHOP_KEY"])
    value: Annotated[SecretStr, AfterValidator(_sendable)] = Field(
        description=f"{_SHORTEST} to {_LONGEST} characters. No response shows it."
    )
    hosts: Annotated[
        list[Host], Field(min_length=1, max_length=20), AfterValidator(_without_repetition)
    ] = Field(
        description="The only hosts it is sent to, such as `api.example.com`; one without a port "
        "stands for every port.",
        examples=[["api.example.com"]],
    )


class SecretRead(Response):
    """A secret without its value."""

    name: str
    hosts: list[str]
    used_by: list[UUID] = Field(description="Ids of the tools and MCP servers that use it.")
    created_at: datetime
    updated_at: datetime

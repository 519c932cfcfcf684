"""Shapes of `POST /v1/realtime/client_secrets`, as OpenAI describes them."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.base import Text

_LONGEST_USER = 200


class ExpiresAfter(BaseModel):
    """When a client secret expires: so many seconds after its creation."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=10, le=7200)] = 600


class ClientSecretCreate(BaseModel):
    """A client secret to create, with the settings of the lines that it opens."""

    model_config = ConfigDict(extra="forbid")

    expires_after: ExpiresAfter = ExpiresAfter()
    session: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="As in `session.update`, and `model`: the agent that answers.",
    )
    session_id: UUID | None = Field(
        default=None, description="The session to go on in; without it each line opens one."
    )
    user_id: Annotated[Text, Field(min_length=1, max_length=_LONGEST_USER)] | None = Field(
        default=None, description="The end user to whom sessions that are opened belong."
    )


class ClientSecretRead(BaseModel):
    """A client secret, whose value is shown only in this response."""

    value: str
    expires_at: int = Field(description="Seconds since 1970.")
    session: dict[str, Any]

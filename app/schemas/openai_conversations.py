"""Bodies of `/v1/conversations`, as OpenAI describes them; unknown fields are ignored."""

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.schemas.base import storable_json

_MOST_ITEMS = 20
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
Items = Annotated[list[dict[str, Any]], Field(max_length=_MOST_ITEMS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, body: object) -> object:
        """Take `null` as absent, as clients mean it; refuse NUL, which no database stores."""
        if not isinstance(body, dict):
            return body
        fields = storable_json(cast("dict[str, Any]", body))
        return {name: value for name, value in fields.items() if value is not None}


class ConversationCreate(_Body):
    """A new conversation, with its first items."""

    items: Items = Field(default_factory=list[dict[str, Any]])
    metadata: Metadata = Field(default_factory=dict[str, str])


class ConversationUpdate(_Body):
    """The metadata instead of what there is."""

    metadata: Metadata


class ItemsCreate(_Body):
    """Items to add to a conversation."""

    items: Annotated[Items, Field(min_length=1)]


class ConversationRead(BaseModel):
    """A conversation."""

    id: str
    object: str = "conversation"
    created_at: int
    """Unix time in seconds."""
    metadata: dict[str, Any]

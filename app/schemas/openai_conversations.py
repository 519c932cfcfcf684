"""Bodies of `/v1/conversations`, as OpenAI describes them; unknown fields are ignored."""

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.schemas.base import storable_json
from app.schemas.openai_base import Metadata, OpenAIBody

_MOST_ITEMS = 20
Items = Annotated[list[dict[str, Any]], Field(max_length=_MOST_ITEMS)]


class _Body(OpenAIBody):
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, body: object) -> object:
        """Refuse what no database stores: NUL, and JSON that is too deep."""
        return storable_json(cast("dict[str, Any]", body)) if isinstance(body, dict) else body


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

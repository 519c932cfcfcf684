"""What the bodies of OpenAI's API share."""

from typing import Annotated, Any, cast

from pydantic import BaseModel, Field, model_validator

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class OpenAIBody(BaseModel):
    """A body in which `null` is as good as absent."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: object) -> object:
        """Take `null` as absent, as clients mean it."""
        if not isinstance(body, dict):
            return body
        fields = cast("dict[str, Any]", body)
        return {name: value for name, value in fields.items() if value is not None}

"""Shapes of answers as JSON."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from app.schemas.base import Request, Text
from app.schemas.tools import JsonObject

JsonPointer = Annotated[Text, StringConstraints(pattern=r"^(/([^~]|~[01])*)?$", max_length=300)]


class ResponseFormatFields(Request):
    """The JSON that the answer must be."""

    type: Literal["json_schema"]
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] = Field(
        examples=["order"]
    )
    schema_: JsonObject = Field(alias="schema", description="A JSON Schema, an object at its top.")
    strict: bool | None = Field(
        default=None,
        description="Whether the provider is told to enforce the schema, which then has closed "
        "objects with required properties only; by default, if it is so. The answer is validated "
        "in any case.",
    )
    speak: JsonPointer | None = Field(
        default=None, description="A JSON Pointer to what is read aloud with `output: voice`."
    )


AnswerFormatField = Annotated[
    ResponseFormatFields | None,
    Field(description="The JSON that this answer must be; by default what the agent says."),
]
AnswerValue = Annotated[
    dict[str, Any] | None,
    Field(description="The value of an answer that was asked for as JSON; `content` is its text."),
]
OutputSchema = Annotated[
    JsonObject | None,
    Field(description="A JSON Schema of the agent's answers, an object at its top."),
]
OutputSpeak = Annotated[
    JsonPointer | None,
    Field(description="A JSON Pointer to what is read aloud of an answer by `output_schema`."),
]

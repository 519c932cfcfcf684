"""What every wire shape shares: strict requests, and text that any database can hold."""

from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

_METADATA_BYTES = 16 * 1024


def _refuse_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without lone surrogates") from None
    return text


def _refuse_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _refuse_unstorable(metadata: dict[str, Any]) -> dict[str, Any]:
    encoded = orjson.dumps(metadata)
    if len(encoded) > _METADATA_BYTES:
        raise ValueError(f"must be at most {_METADATA_BYTES} bytes of JSON")
    if b"\\u0000" in encoded:
        raise ValueError("must not contain the NUL character")
    return metadata


Text = Annotated[str, AfterValidator(_refuse_nul)]
NonBlank = Annotated[Text, AfterValidator(_refuse_blank)]
Name = Annotated[NonBlank, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Metadata = Annotated[dict[str, Any], AfterValidator(_refuse_unstorable)]


class Request(BaseModel):
    """A body from a client: an unknown field is a typing mistake, so it is refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Response(BaseModel):
    """A body to a client: read off a row; no field has a default, so none is optional."""

    model_config = ConfigDict(from_attributes=True)

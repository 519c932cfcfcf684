"""The requests of `/v1/audio`, as OpenAI describes them. Unknown fields are ignored."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from app.schemas.languages import language_code
from app.schemas.openai_base import OpenAIBody

MOST_SPOKEN_CHARACTERS = 20_000
_LONGEST_PROMPT = 4000
_LONGEST_VOICE = 200

_Model = Annotated[str, Field(min_length=1, max_length=300)]
_VoiceName = Annotated[str, Field(min_length=1, max_length=_LONGEST_VOICE)]


class TranscriptFormat(StrEnum):
    """How a transcript is given."""

    JSON = "json"
    TEXT = "text"
    VERBOSE_JSON = "verbose_json"
    SRT = "srt"
    VTT = "vtt"
    DIARIZED_JSON = "diarized_json"
    """Refused: nobody tells speakers apart."""


class TranscriptionCreate(OpenAIBody):
    """The fields of `POST /v1/audio/transcriptions` beside its file."""

    model_config = ConfigDict(extra="ignore")

    model: _Model
    language: Annotated[str, AfterValidator(language_code)] | None = None
    prompt: Annotated[str, Field(max_length=_LONGEST_PROMPT)] | None = None
    response_format: TranscriptFormat = TranscriptFormat.JSON
    granularities: list[Literal["word", "segment"]] = Field(
        default_factory=list[Literal["word", "segment"]], alias="timestamp_granularities[]"
    )
    stream: bool = False


class VoiceId(OpenAIBody):
    """A voice by its id."""

    model_config = ConfigDict(extra="ignore")

    id: _VoiceName


class SpeechCreate(OpenAIBody):
    """A text to speak."""

    model_config = ConfigDict(extra="ignore")

    model: _Model = Field(
        description="Any name. That of an agent gives the speech the agent's voice and language."
    )
    input: str = Field(min_length=1, max_length=MOST_SPOKEN_CHARACTERS)
    voice: _VoiceName | VoiceId | None = Field(
        default=None, description="Without it the agent's, or the server's."
    )
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1
    stream_format: Literal["audio", "sse"] = "audio"

"""How a line is set up: what it listens for, and what its answers are asked for with."""

from enum import StrEnum

from app.core.value_objects import value_object
from app.services.ports import ToolDefinition


class DetectionKind(StrEnum):
    """How the end of what somebody says is found."""

    SILENCE = "server_vad"
    SEMANTIC = "semantic_vad"


class Eagerness(StrEnum):
    """How soon a turn of `semantic_vad` ends."""

    AUTO = "auto"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@value_object(frozen=True, slots=True)
class TurnDetection:
    """When somebody has begun to speak, and when they have finished."""

    kind: DetectionKind = DetectionKind.SILENCE
    threshold: float = 0.5
    """The probability of speech (0 to 1) from which on a window of 32 ms counts as speech."""
    prefix_padding_ms: int = 300
    """How much from before the beginning is kept."""
    silence_duration_ms: int = 500
    """How long a silence ends the turn."""
    eagerness: Eagerness = Eagerness.AUTO
    creates_response: bool = True
    interrupts_response: bool = True


@value_object(frozen=True, slots=True)
class ResponseSettings:
    """What an answer is asked for with, beside the agent's own settings."""

    is_spoken: bool = True
    instructions: str | None = None
    voice: str | None = None
    tools: tuple[ToolDefinition, ...] = ()
    may_call_tools: bool = True
    tool_choice: str | None = None
    """As in `ChatOptions`."""
    max_output_tokens: int | None = None


@value_object(frozen=True, slots=True)
class LineConfig:
    """The settings of a line, which the client may change at any time."""

    answers: ResponseSettings = ResponseSettings()
    detection: TurnDetection | None = TurnDetection()
    """`None` where the client says when somebody has finished."""


@value_object(frozen=True, slots=True)
class LineTimes:
    """How long a line may last, in seconds."""

    line_seconds: float = 3600.0
    idle_seconds: float = 600.0
    """Without an event of the client."""
    reader_seconds: float = 20.0
    """How long a client may take to read what it is sent."""
    check_seconds: float = 0.5

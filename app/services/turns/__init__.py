"""The turn engine: accepts, runs and settles turns. All model calls go through it."""

from app.services.turns.engine import TurnEngine
from app.services.turns.errors import tool_call_not_found
from app.services.turns.event_subscription import follow_here, is_complete, subscribe
from app.services.turns.events import AudioClip, TurnEvent
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.turn_observer import TurnObserver
from app.services.turns.records import (
    AnswerFormat,
    BusyPolicy,
    Outcome,
    Persona,
    Reply,
    RequestKey,
    TurnOptions,
    TurnRequest,
    Usage,
)
from app.services.turns.storage import audio_store, idempotency_keys
from app.services.turns.storage.audio_store import AudioStore
from app.services.turns.storage.resolution import Resolution
from app.services.turns.voice_port import (
    SpokenPiece,
    VoiceStages,
    VoiceStagesFactory,
)

__all__ = [
    "AnswerFormat",
    "AudioClip",
    "AudioStore",
    "BusyPolicy",
    "LiveTurn",
    "Outcome",
    "Persona",
    "Reply",
    "RequestKey",
    "Resolution",
    "SpokenPiece",
    "TurnEngine",
    "TurnEvent",
    "TurnObserver",
    "TurnOptions",
    "TurnRequest",
    "Usage",
    "VoiceStages",
    "VoiceStagesFactory",
    "audio_store",
    "follow_here",
    "idempotency_keys",
    "is_complete",
    "subscribe",
    "tool_call_not_found",
]

"""The turn engine: accept, run, settle; nothing else calls a model."""

from app.services.turns import audio_store, keys
from app.services.turns.audio_store import AudioStore
from app.services.turns.engine import TurnEngine
from app.services.turns.events import TurnEvent
from app.services.turns.following import follow
from app.services.turns.live import LiveTurn
from app.services.turns.records import OnBusy, Persona, Reply, RequestKey, TurnOptions, Usage
from app.services.turns.voice_stages import Clip, SpokenPiece, VoiceMaker, VoiceStages

__all__ = [
    "AudioStore",
    "Clip",
    "LiveTurn",
    "OnBusy",
    "Persona",
    "Reply",
    "RequestKey",
    "SpokenPiece",
    "TurnEngine",
    "TurnEvent",
    "TurnOptions",
    "Usage",
    "VoiceMaker",
    "VoiceStages",
    "audio_store",
    "follow",
    "keys",
]

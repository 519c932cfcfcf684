"""The turn engine: accept, run, settle; nothing else calls a model."""

from app.services.turns import keys
from app.services.turns.engine import TurnEngine
from app.services.turns.events import TurnEvent
from app.services.turns.following import follow
from app.services.turns.live import Clip, LiveTurn, VoiceStages
from app.services.turns.records import OnBusy, Persona, Reply, RequestKey, TurnOptions, Usage

__all__ = [
    "Clip",
    "LiveTurn",
    "OnBusy",
    "Persona",
    "Reply",
    "RequestKey",
    "TurnEngine",
    "TurnEvent",
    "TurnOptions",
    "Usage",
    "VoiceStages",
    "follow",
    "keys",
]

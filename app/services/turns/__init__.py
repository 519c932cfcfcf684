"""The turn engine: accept, run, settle; nothing else calls a model."""

from app.services.turns.engine import TurnEngine
from app.services.turns.live import LiveTurn, VoiceStages
from app.services.turns.records import Persona, Reply, Usage

__all__ = ["LiveTurn", "Persona", "Reply", "TurnEngine", "Usage", "VoiceStages"]

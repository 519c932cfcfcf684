"""A voice turn: from an upload, over the turn engine, to sound."""

from app.services.voice.guard import MAX_BYTES as UPLOAD_BYTES_LIMIT
from app.services.voice.service import VoiceAnswer, VoiceService
from app.services.voice.turn import VoiceTurns

__all__ = ["UPLOAD_BYTES_LIMIT", "VoiceAnswer", "VoiceService", "VoiceTurns"]

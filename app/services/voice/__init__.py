"""A voice turn: from an upload, over the turn engine, to sound."""

import os

# Read once, by NumPy's first import. Products this small lose by threads: measured on two busy
# cores, they spin for each other and cost up to eight times the CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from app.services.voice.guard import MAX_BYTES as UPLOAD_BYTES_LIMIT
from app.services.voice.service import VoiceAnswer, VoiceService
from app.services.voice.turn import VoiceTurns

__all__ = ["UPLOAD_BYTES_LIMIT", "VoiceAnswer", "VoiceService", "VoiceTurns"]

"""Voice turns: transcribe a recording, run the turn engine, synthesize the answer as MP3."""

import os

# Read once, at NumPy's first import. Threads slow down matrix products this small: measured on two
# busy cores, spinning threads cost up to eight times the CPU.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from app.services.voice.service import VoiceAnswer, VoiceService
from app.services.voice.turn import LiveSink, VoiceTurn, VoiceTurns
from app.services.voice.upload_check import MAX_BYTES as UPLOAD_BYTES_LIMIT

__all__ = [
    "UPLOAD_BYTES_LIMIT",
    "LiveSink",
    "VoiceAnswer",
    "VoiceService",
    "VoiceTurn",
    "VoiceTurns",
]

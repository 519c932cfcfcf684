"""The adapter for OpenAI and for every server that speaks its API.

A thin client of our own: the official SDK costs more CPU than the rest of a turn. State of
the art of each endpoint is in `chat`, `speech` and `realtime`; `client` owns the connections.
"""

from app.services.openai_service.chat import OpenAIChatModel
from app.services.openai_service.client import OpenAIClient
from app.services.openai_service.realtime import RealtimeSpeaker, make_speaker
from app.services.openai_service.speech import OpenAISpeaker, OpenAITranscriber

__all__ = [
    "OpenAIChatModel",
    "OpenAIClient",
    "OpenAISpeaker",
    "OpenAITranscriber",
    "RealtimeSpeaker",
    "make_speaker",
]

"""The adapter for OpenAI and for every server that speaks its API.

A thin client of our own, for the official SDK costs more CPU than the rest of a turn. `client`
owns the connections; `chat`, `speech` and `realtime` speak one endpoint each.
"""

from app.services.openai_service.chat import OpenAIChatModel
from app.services.openai_service.client import OpenAIClient
from app.services.openai_service.lifetimes import warn_of_shutdowns
from app.services.openai_service.realtime import RealtimeSpeaker, make_speaker
from app.services.openai_service.speech import OpenAISpeaker, OpenAITranscriber

__all__ = [
    "OpenAIChatModel",
    "OpenAIClient",
    "OpenAISpeaker",
    "OpenAITranscriber",
    "RealtimeSpeaker",
    "make_speaker",
    "warn_of_shutdowns",
]

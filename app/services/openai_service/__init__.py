"""The adapter for OpenAI and for every server that speaks its API.

A thin client of our own, for the official SDK costs more CPU than the rest of a turn. `client`
owns the connections; `chat`, `speech` and `realtime` speak one endpoint each.
"""

from app.services.openai_service.chat import OpenAIChatModel
from app.services.openai_service.compressed_speech import SpeechDecoder
from app.services.openai_service.deprecations import ANNOUNCED_ENDS, warn_of_shutdowns
from app.services.openai_service.model_check import ModelCheck, check_model
from app.services.openai_service.realtime import RealtimeSpeaker, make_speaker
from app.services.openai_service.speech import OpenAISpeaker, OpenAITranscriber
from app.services.provider_http.client import ProviderClient

__all__ = [
    "ANNOUNCED_ENDS",
    "ModelCheck",
    "OpenAIChatModel",
    "OpenAISpeaker",
    "OpenAITranscriber",
    "ProviderClient",
    "RealtimeSpeaker",
    "SpeechDecoder",
    "check_model",
    "make_speaker",
    "warn_of_shutdowns",
]

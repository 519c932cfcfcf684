"""The capabilities of AI providers: chat, speech to text, text to speech."""

from enum import StrEnum


class Capability(StrEnum):
    """A service that a provider offers and that a turn may use."""

    CHAT = "chat"
    STT = "stt"
    """Speech to text."""
    TTS = "tts"
    """Text to speech."""

"""The formats of speech that clients can ask for; `encoders.py` makes them, and needs NumPy."""

from enum import StrEnum

WARM_UP = "app.services.audio.encode:warm_up"
"""What a worker process needs for `opus` and `aac`."""


class SpeechFormat(StrEnum):
    """The formats of speech; the values are those of OpenAI's API."""

    MP3 = "mp3"
    OPUS = "opus"
    AAC = "aac"
    FLAC = "flac"
    WAV = "wav"
    PCM = "pcm"

    @property
    def media_type(self) -> str:
        """The media type of a stream."""
        return _MEDIA_TYPES[self]


_MEDIA_TYPES = {
    SpeechFormat.MP3: "audio/mpeg",
    SpeechFormat.OPUS: "audio/ogg",
    SpeechFormat.AAC: "audio/aac",
    SpeechFormat.FLAC: "audio/flac",
    SpeechFormat.WAV: "audio/wav",
    SpeechFormat.PCM: "audio/pcm",
}

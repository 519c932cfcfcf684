"""The sound formats of the protocol: PCM of 24 kHz, and the telephone's G.711."""

import base64
import binascii
from dataclasses import dataclass

import numpy as np

from app.services.audio import g711
from app.services.audio.silero import SAMPLE_RATE_HZ, Floats
from app.services.audio.stream_resample import StreamResampler
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.paced_sound import SOUND_RATE_HZ

PCM, MU_LAW, A_LAW = "audio/pcm", "audio/pcmu", "audio/pcma"
FORMATS = (PCM, MU_LAW, A_LAW)
_DECODERS = {MU_LAW: g711.decode_mu_law, A_LAW: g711.decode_a_law}
_ENCODERS = {MU_LAW: g711.encode_mu_law, A_LAW: g711.encode_a_law}
_FULL_SCALE = np.float32(32768)


def rate_of(name: str) -> int:
    """Return the samples a second of a format."""
    return SOUND_RATE_HZ if name == PCM else g711.RATE_HZ


def decode_base64(text: object) -> bytes:
    """Return the bytes of a field with sound. Raises `LiveInputRefused`."""
    if not isinstance(text, str):
        raise LiveInputRefused("invalid_type", "It must be a string in Base64.", "audio")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise LiveInputRefused("invalid_value", "It is not Base64.", "audio") from None


@dataclass(slots=True)
class SoundInput:
    """What a client says, as 16 kHz mono."""

    format: str = PCM
    _resampler: StreamResampler | None = None
    _rest: bytes = b""

    def decode(self, data: bytes) -> Floats:
        """Return the next samples in -1 to 1; half a sample waits for its other half."""
        resampler = self._resampler
        if resampler is None:
            resampler = StreamResampler(rate_of(self.format), SAMPLE_RATE_HZ)
            self._resampler = resampler
        if self.format != PCM:
            return resampler.feed(_DECODERS[self.format](data))
        data = self._rest + data
        whole = len(data) & ~1
        self._rest = data[whole:]
        samples = np.frombuffer(data, "<i2", whole // 2).astype(np.float32)
        return resampler.feed(samples / _FULL_SCALE)


@dataclass(slots=True)
class SoundOutput:
    """What a client hears."""

    format: str = PCM
    _resampler: StreamResampler | None = None

    def encode(self, pcm: bytes) -> str:
        """Return sound of 24 kHz in the client's format, in Base64."""
        if self.format != PCM:
            resampler = self._resampler
            if resampler is None:
                resampler = StreamResampler(SOUND_RATE_HZ, g711.RATE_HZ)
                self._resampler = resampler
            samples = np.frombuffer(pcm, "<i2").astype(np.float32) / _FULL_SCALE
            pcm = _ENCODERS[self.format](resampler.feed(samples))
        return base64.b64encode(pcm).decode()

"""G.711: telephone sound of 8 kHz, a byte for each sample (ITU-T G.711, mu-law and A-law)."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from app.services.audio.silero import Floats

RATE_HZ = 8000
_FULL_SCALE = 32768
_MU_BIAS = 132


def decode_mu_law(data: bytes) -> Floats:
    """Return samples in -1 to 1."""
    return _mu_law_table()[np.frombuffer(data, np.uint8)]


def decode_a_law(data: bytes) -> Floats:
    """Return samples in -1 to 1."""
    return _a_law_table()[np.frombuffer(data, np.uint8)]


def encode_mu_law(samples: Floats) -> bytes:
    """Return the byte nearest to each sample in -1 to 1."""
    return _nearest(samples, _mu_law_table())


def encode_a_law(samples: Floats) -> bytes:
    """Return the byte nearest to each sample in -1 to 1."""
    return _nearest(samples, _a_law_table())


def _nearest(samples: Floats, table: Floats) -> bytes:
    order = np.argsort(table, kind="stable")
    ordered = table[order]
    middles = (ordered[1:] + ordered[:-1]) / 2
    places = np.searchsorted(middles, samples)
    return order[places].astype(np.uint8).tobytes()


@cache
def _mu_law_table() -> Floats:
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = _fields(code)
    size = ((mantissa * 8 + _MU_BIAS) << exponent) - _MU_BIAS
    return _signed(size, negative=code >= 128)  # noqa: PLR2004  # the sign bit


@cache
def _a_law_table() -> Floats:
    code = np.arange(256, dtype=np.uint8) ^ np.uint8(0x55)
    exponent, mantissa = _fields(code)
    size = mantissa * 16 + 8
    size = np.where(exponent > 0, (size + 256) << np.maximum(exponent - 1, 0), size)
    return _signed(size, negative=code < 128)  # noqa: PLR2004  # the sign bit


def _fields(code: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    wide = code.astype(np.int32)
    return (wide >> 4) & 7, wide & 15


def _signed(size: NDArray[np.int32], *, negative: NDArray[np.bool_]) -> Floats:
    return (np.where(negative, -size, size) / _FULL_SCALE).astype(np.float32)

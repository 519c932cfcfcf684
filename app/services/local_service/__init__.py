"""The embedded engine: chat, speech recognition and speech synthesis without a key or a network.

`LocalEngine` owns a worker process in which the models run; the three `Local...` classes put it
behind the ports. `ensure_weights` brings the weights. The names are loaded at first use: the
worker imports this package, too, and must not pay for the server's libraries.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.services.local_service.adapter import LocalChatModel, LocalSpeaker, LocalTranscriber
    from app.services.local_service.engine import (
        EmbeddedPackagesMissing,
        LocalEngine,
        require_packages,
    )
    from app.services.local_service.protocol import Part
    from app.services.local_service.weights import (
        WeightPaths,
        WeightsUnavailable,
        ensure_weights,
    )

__all__ = [
    "EmbeddedPackagesMissing",
    "LocalChatModel",
    "LocalEngine",
    "LocalSpeaker",
    "LocalTranscriber",
    "Part",
    "WeightPaths",
    "WeightsUnavailable",
    "ensure_weights",
    "require_packages",
]

_HOMES = {
    "adapter": ("LocalChatModel", "LocalSpeaker", "LocalTranscriber"),
    "engine": ("EmbeddedPackagesMissing", "LocalEngine", "require_packages"),
    "protocol": ("Part",),
    "weights": ("WeightPaths", "WeightsUnavailable", "ensure_weights"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

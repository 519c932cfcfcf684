"""The embedded engine: chat, transcription and speech synthesis without an API key or network.

`LocalEngine` owns the worker process that runs the models; the three `Local...` classes implement
the ports. `ensure_weights` downloads the weights. Names are imported at first use, because the
worker imports this package as well and must not load the server's libraries.
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
    from app.services.local_service.weights import (
        WeightPaths,
        WeightsUnavailable,
        ensure_weights,
        find_missing_weights,
    )

__all__ = [
    "EmbeddedPackagesMissing",
    "LocalChatModel",
    "LocalEngine",
    "LocalSpeaker",
    "LocalTranscriber",
    "WeightPaths",
    "WeightsUnavailable",
    "ensure_weights",
    "find_missing_weights",
    "require_packages",
]

_MODULES = {
    "adapter": ("LocalChatModel", "LocalSpeaker", "LocalTranscriber"),
    "engine": ("EmbeddedPackagesMissing", "LocalEngine", "require_packages"),
    "weights": (
        "WeightPaths",
        "WeightsUnavailable",
        "ensure_weights",
        "find_missing_weights",
    ),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

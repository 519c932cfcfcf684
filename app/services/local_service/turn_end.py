"""Fulfils `TurnEndJudge` with smart-turn, which is loaded when a line first asks for it."""

import importlib.util
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from app.services.local_service.smart_turn import SmartTurn

logger = logging.getLogger(__name__)


class LocalTurnEndJudge:
    """Fulfils `TurnEndJudge`; loads its model once somebody asks for it."""

    def __init__(self, data_dir: Path, models_dir: Path | None) -> None:
        self._root = data_dir.absolute() / "models" / "turn-end"
        self._models_dir = models_dir
        self._model: SmartTurn | None = None
        self._loading: threading.Thread | None = None
        self._stop = threading.Event()
        self._limiter: anyio.CapacityLimiter | None = None

    @property
    def is_ready(self) -> bool:
        """True once the model is loaded."""
        return self._model is not None

    def prepare(self) -> None:
        """Begin to load the model, once; what prevents that is logged."""
        if self._loading is None:
            self._loading = threading.Thread(target=self._load, name="turn-end", daemon=True)
            self._loading.start()

    def close(self) -> None:
        """Stop a download."""
        self._stop.set()

    def _load(self) -> None:
        from app.services.local_service.sources import Stopped
        from app.services.local_service.weights import WeightsUnavailable

        if importlib.util.find_spec("onnxruntime") is None:
            logger.warning(
                "semantic_vad is a silence of 600 ms: onnxruntime is not installed. Run "
                "`pip install -r requirements/embedded.txt` for a model that hears sentences."
            )
            return
        try:
            self._model = self._open()
            logger.info("semantic_vad listens with smart-turn v3.2")
        except Stopped:
            return
        except (WeightsUnavailable, OSError) as error:
            logger.warning("semantic_vad is a silence of 600 ms: %s", error)
        except Exception:
            logger.exception("semantic_vad is a silence of 600 ms: its model cannot be loaded")

    def _open(self) -> "SmartTurn":
        from app.services.local_service.progress import LogReport
        from app.services.local_service.smart_turn import SET, SmartTurn
        from app.services.local_service.weights import Fetch

        fetch = Fetch(
            root=self._root,
            models_dir=self._models_dir,
            hub_url=None,
            report=LogReport(),
            stop=self._stop,
        )
        fetch.ensure(SET)
        return SmartTurn(self._root)

    async def probability_of_end(self, pcm: bytes) -> float:
        """Fulfil `TurnEndJudge.probability_of_end`; one at a time, beside the event loop."""
        model = self._model
        if model is None:
            raise RuntimeError("the model is not loaded")
        limiter = self._limiter = self._limiter or anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(model.probability_of_end, pcm, limiter=limiter)

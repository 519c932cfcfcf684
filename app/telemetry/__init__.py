"""What operators see of the running server: log lines of turns and providers, metrics, traces."""

from app.telemetry.metrics import Metrics
from app.telemetry.observer import Telemetry

__all__ = ["Metrics", "Telemetry"]

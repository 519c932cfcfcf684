"""Every metric of a process, by name. `docs/observability.md` lists them; a test compares."""

import platform
import time
from collections.abc import Callable, Mapping

from app import __version__
from app.telemetry.instruments import Counter, Gauge, Histogram, Labels

PREFIX = "agent_platform_"
_FAST_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)


class Metrics:
    """What one process counts. Its methods neither raise nor wait."""

    def __init__(self) -> None:
        self.counters: list[Counter] = []
        self.histograms: list[Histogram] = []
        self.gauges: list[Gauge] = []
        self.turns = self._counter("turns", "Turns that ended here.", "status", "modality", "code")
        self.turn_seconds = self._histogram(
            "turn_seconds", "From a turn's acceptance to its end.", _SLOW_SECONDS, "modality"
        )
        self.tokens = self._counter("tokens", "Tokens that turns used.", "kind")
        self.cost_usd = self._counter("cost_usd", "US dollars of turns whose price is known.")
        self.tool_calls = self._counter("tool_calls", "Tool calls that ended.", "kind", "status")
        self.tool_call_seconds = self._histogram(
            "tool_call_seconds", "Duration of a tool call.", _SLOW_SECONDS, "kind"
        )
        self.provider_attempts = self._counter(
            "provider_attempts", "Attempts at a provider.", "capability", "outcome"
        )
        self.provider_retries = self._counter(
            "provider_retries", "Attempts that were repeated.", "capability"
        )
        self.provider_first_item_seconds = self._histogram(
            "provider_first_item_seconds",
            "Until a provider's first token, transcript or sound.",
            _SLOW_SECONDS,
            "capability",
        )
        self.provider_call_seconds = self._histogram(
            "provider_call_seconds",
            "Duration of an attempt that succeeded.",
            _SLOW_SECONDS,
            "capability",
        )
        self.provider_refusals = self._counter(
            "provider_breaker_refusals", "Calls that an open circuit breaker refused.", "capability"
        )
        self.requests = self._counter(
            "http_requests", "Requests that were answered.", "method", "route", "status"
        )
        self.request_seconds = self._histogram(
            "http_request_seconds", "Until a request's answer has ended.", _FAST_SECONDS, "route"
        )
        self.refusals = self._counter(
            "refused_requests", "Requests that were answered with an error, by its code.", "code"
        )
        self.loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds", "How late the event loop ran a timer.", _LAG_SECONDS
        )
        started_at = time.time()
        self.add_gauge("start_time_seconds", "Start of the process.", (), lambda: {(): started_at})

    def add_build_info(self, revision: str) -> None:
        """Tell version, Python and the database's revision that this version needs."""
        values = {(__version__, platform.python_version(), revision): 1.0}
        names = ("version", "python", "revision")
        self.add_gauge("build_info", "Version of the server.", names, lambda: values)

    def add_gauge(
        self,
        name: str,
        documentation: str,
        label_names: Labels,
        read: Callable[[], Mapping[Labels, float]],
    ) -> None:
        """Let `read` be asked whenever metrics are."""
        self.gauges.append(Gauge(PREFIX + name, documentation, label_names, read))

    def _counter(self, name: str, documentation: str, *label_names: str) -> Counter:
        counter = Counter(PREFIX + name, documentation, label_names)
        self.counters.append(counter)
        return counter

    def _histogram(
        self, name: str, documentation: str, buckets: tuple[float, ...], *label_names: str
    ) -> Histogram:
        histogram = Histogram(PREFIX + name, documentation, buckets, label_names)
        self.histograms.append(histogram)
        return histogram

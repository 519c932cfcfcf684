"""What is told of turns, providers and requests becomes log lines, metrics and spans here."""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from app.core.errors import AppError
from app.core.logging import FrequentLogLine, describe_cause, log_fields
from app.core.request_context import ProviderCall, RequestContext, current_context
from app.services.ports import ProviderError
from app.services.turns import LiveTurn, Outcome
from app.services.turns.errors import TurnLost
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.telemetry.tracing import TurnTracer

turn_logger = logging.getLogger("app.turns")
provider_logger = logging.getLogger("app.providers")

_ENDED = FrequentLogLine(turn_logger, logging.INFO, "turn ended")
_LOST = FrequentLogLine(turn_logger, logging.WARNING, "turn ended")
_LAG_PERIOD_SECONDS = 0.5
_SLOW_LOOP_SECONDS = 1.0
_MS = 1000


class Telemetry:
    """Fulfils `TurnObserver` and `ProviderObserver`. One instance serves the process."""

    def __init__(self, tracer: "TurnTracer | None" = None) -> None:
        self.metrics = Metrics()
        self._tracer = tracer

    @property
    def is_tracing(self) -> bool:
        """True where spans are exported."""
        return self._tracer is not None

    def turn_ended(self, live: LiveTurn, outcome: Outcome) -> None:
        """Fulfil `TurnObserver`: one line, and what it adds to the metrics."""
        now = time.monotonic()
        record, progress, error = live.record, live.progress, outcome.error
        code = error.code if error else ""
        modality = record.modality.value
        status = outcome.status.value
        metrics = self.metrics
        metrics.turns.add(status, modality, code)
        metrics.turn_seconds.observe(now - live.accepted_at, modality)
        timings = progress.timings
        usage = progress.usage
        if usage.prompt_tokens:
            metrics.tokens.add("prompt", amount=usage.prompt_tokens)
        if usage.completion_tokens:
            metrics.tokens.add("completion", amount=usage.completion_tokens)
        if usage.cost_usd:
            metrics.cost_usd.add(amount=usage.cost_usd)
        if progress.steps:
            self._count_tool_calls(live)
        lines = _LOST if isinstance(error, TurnLost) else _ENDED
        lines.write(
            {
                "turn_id": str(record.id),
                "session_id": str(record.session_id),
                "workspace_id": str(record.workspace_id),
                "request_id": live.context.request_id,
                "trace_id": live.context.trace_id,
                "status": status,
                "code": code or None,
                "detail": error.detail if error else None,
                "cause": describe_cause(error) if error else None,
                "modality": modality,
                "model": progress.model,
                "finish_reason": progress.finish_reason,
                "attempt": record.attempt,
                "accept_ms": _accept_ms(live),
                **timings,
                "settle_ms": _settle_ms(live, now),
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "cost_usd": usage.cost_usd,
            }
        )
        if self._tracer:
            self._tracer.export_turn(live, outcome)

    def _count_tool_calls(self, live: LiveTurn) -> None:
        for call in live.ended_calls():
            kind = call.tool.kind.value if call.tool else "unknown"
            self.metrics.tool_calls.add(kind, call.status.value)
            if call.is_ours and (seconds := call.duration_seconds) is not None:
                self.metrics.tool_call_seconds.observe(seconds, kind)

    def turn_released(self, live: LiveTurn) -> None:
        """Fulfil `TurnObserver`: the server stops before the turn has ended."""
        turn_logger.info(
            "turn released: this server shuts down, another one runs it again",
            extra=log_fields(
                request_id=live.context.request_id,
                turn_id=str(live.record.id),
                session_id=str(live.record.session_id),
                status=live.record.status.value,
                code="server-draining",
            ),
        )

    def attempt_ended(self, call: ProviderCall, *, is_whole: bool, will_retry: bool) -> None:
        """Fulfil `ProviderObserver`."""
        metrics, error = self.metrics, call.error
        capability = call.capability
        if call.first_item_at is not None:
            metrics.provider_first_item_seconds.observe(
                call.first_item_at - call.started_at, capability
            )
        if error is None:
            if is_whole:
                metrics.provider_attempts.add(capability, "ok")
                metrics.provider_call_seconds.observe(call.ended_at - call.started_at, capability)
            else:
                metrics.provider_attempts.add(capability, "abandoned")
        else:
            metrics.provider_attempts.add(capability, error.code)
            if will_retry:
                metrics.provider_retries.add(capability)
            self._warn_of_failure(call, error, will_retry=will_retry)
        context = current_context()
        if context and (self._tracer or error or call.attempt > 1):
            context.add_call(call)

    def _warn_of_failure(self, call: ProviderCall, error: AppError, *, will_retry: bool) -> None:
        provider_logger.warning(
            "provider failed",
            extra=log_fields(
                capability=call.capability,
                host=call.host,
                model=call.model,
                code=error.code,
                detail=error.detail,
                http_status=error.http_status if isinstance(error, ProviderError) else None,
                cause=describe_cause(error),
                attempt=call.attempt,
                ms=round((call.ended_at - call.started_at) * _MS, 1),
                retried=will_retry,
                retry_after_seconds=error.retry_after_seconds,
            ),
        )

    def call_refused(self, capability: str, host: str, model: str | None) -> None:
        """Fulfil `ProviderObserver`: the circuit breaker is open."""
        self.metrics.provider_refusals.add(capability)
        provider_logger.warning(
            "provider not asked: its circuit breaker is open",
            extra=log_fields(
                capability=capability, host=host, model=model, code="circuit-breaker-open"
            ),
        )

    def begin_request(self, context: RequestContext) -> None:
        """Give a request a trace where spans are exported and its caller named none."""
        if self._tracer and context.trace_id is None:
            context.trace_id = self._tracer.new_trace_id()

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Measure how late the event loop runs while the block does."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._watch_event_loop)
            yield
            background.cancel_scope.cancel()

    async def _watch_event_loop(self) -> None:
        while True:
            due_at = time.monotonic() + _LAG_PERIOD_SECONDS
            await anyio.sleep(_LAG_PERIOD_SECONDS)
            lag_seconds = max(0.0, time.monotonic() - due_at)
            self.metrics.loop_lag_seconds.observe(lag_seconds)
            if lag_seconds > _SLOW_LOOP_SECONDS:
                logging.getLogger(__name__).warning(
                    "the event loop was blocked", extra=log_fields(ms=round(lag_seconds * _MS))
                )


def host_of(url: str) -> str:
    """Return a URL's host and port, without credentials."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or "?"


def _settle_ms(live: LiveTurn, now: float) -> float | None:
    total_ms = live.progress.timings.get("total_ms")
    return None if total_ms is None else round((now - live.accepted_at) * _MS - total_ms, 1)


def _accept_ms(live: LiveTurn) -> float | None:
    if live.context.request_id is None:
        return None
    return round((live.accepted_at - live.context.received_at) * _MS, 1)

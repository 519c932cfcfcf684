"""Turns as OpenTelemetry traces: made at a turn's end from what is known of it, with no content.

`opentelemetry` is imported here alone, and only where OTEL_EXPORTER_OTLP_ENDPOINT is set.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import anyio.to_thread

from app import __version__
from app.core.capabilities import Capability
from app.core.config import Settings
from app.core.errors import StartRefused
from app.core.request_context import ProviderCall
from app.services.turns import LiveTurn, Outcome
from app.services.turns.steps import Call

_OPERATIONS = {
    Capability.CHAT.value: "chat",
    Capability.STT.value: "transcription",
    Capability.TTS.value: "text_to_speech",
}
_SHUTDOWN_MS = 3000
_NANOSECONDS = 1_000_000_000


class TurnTracer:
    """Exports one trace of each turn that ends here."""

    def __init__(self, settings: Settings) -> None:
        """Raise `StartRefused` where the packages of the extra `otel` are missing."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        except ImportError:
            raise StartRefused(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, and the packages that export traces are not "
                "installed: run `pip install 'agent-platform[otel]'`, or unset it."
            ) from None

        class IdGenerator(RandomIdGenerator):
            """Gives a trace the id that its log lines have."""

            next_trace_id: int | None = None

            def generate_trace_id(self) -> int:
                trace_id, self.next_trace_id = self.next_trace_id, None
                return trace_id or super().generate_trace_id()

        self._trace = trace
        self._ids = IdGenerator()
        self._provider = TracerProvider(
            resource=Resource.create({
                "service.name": settings.otel_service_name,
                "service.version": __version__,
            }),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )  # fmt: skip
        exporter = OTLPSpanExporter(
            endpoint=f"{settings.otel_exporter_otlp_endpoint}/v1/traces",
            headers=_parse_headers(settings),
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("agent_platform", __version__)
        # Spans have times since 1970, and what is measured has those of the monotonic clock.
        self._epoch_seconds = time.time() - time.monotonic()

    @staticmethod
    def new_trace_id() -> str:
        """Return an id for a trace that begins here."""
        return secrets.token_hex(16)

    def export_turn(self, live: LiveTurn, outcome: Outcome) -> None:
        """Make the spans of a turn that has ended now; they are sent in the background."""
        context, record = live.context, live.record
        has_request = context.request_id is not None
        started_at = min(context.received_at, live.accepted_at)
        if not has_request:
            started_at = live.accepted_at
        root = self._start_root(live, started_at)
        error = outcome.error
        if error:
            root.set_attribute("error.type", error.code)
            root.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error.code))
        root.set_attributes(_root_attributes(live, outcome))
        parent = self._trace.set_span_in_context(root)
        if has_request:
            self._stage(parent, "accept", started_at, live.accepted_at)
        timings = live.progress.timings
        begun_at = live.accepted_at + timings.get("queue_ms", 0) / 1000
        if record.was_queued:
            self._stage(parent, "queue", live.accepted_at, begun_at)
        prompt_from: float | None = begun_at
        for call in context.provider_calls:
            if call.capability == Capability.CHAT and prompt_from is not None:
                self._stage(parent, "prompt", prompt_from, call.started_at)
                prompt_from = None
            elif call.capability == Capability.STT:
                prompt_from = call.ended_at
            self._call(parent, call, live)
        for tool_call in live.ended_calls():
            self._tool_call(parent, tool_call)
        now = time.monotonic()
        if (total_ms := timings.get("total_ms")) is not None:
            self._stage(parent, "settle", live.accepted_at + total_ms / 1000, now)
        root.end(self._nanoseconds(now))

    async def shut_down(self) -> None:
        """Send what waits, for a few seconds at most."""

        def flush_and_stop() -> None:
            self._provider.force_flush(_SHUTDOWN_MS)
            self._provider.shutdown()

        await anyio.to_thread.run_sync(flush_and_stop)

    def _start_root(self, live: LiveTurn, started_at: float) -> Any:  # noqa: ANN401  # a span
        trace, context = self._trace, live.context
        parent: Any = None
        if context.parent:
            remote = trace.SpanContext(
                int(context.parent.trace_id, 16),
                int(context.parent.span_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(context.parent.flags),
            )
            parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        elif context.trace_id:
            self._ids.next_trace_id = int(context.trace_id, 16)
        return self._tracer.start_span(
            "invoke_agent",
            context=parent or trace.set_span_in_context(trace.INVALID_SPAN),
            kind=trace.SpanKind.SERVER,
            start_time=self._nanoseconds(started_at),
        )

    def _stage(self, parent: Any, name: str, started_at: float, ended_at: float) -> None:  # noqa: ANN401
        span = self._tracer.start_span(
            name, context=parent, start_time=self._nanoseconds(started_at)
        )
        span.end(self._nanoseconds(max(started_at, ended_at)))

    def _call(self, parent: Any, call: ProviderCall, live: LiveTurn) -> None:  # noqa: ANN401
        """Make the span of an attempt, by the semantic conventions for generative AI."""
        operation = _OPERATIONS[call.capability]
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "openai" if call.host != "embedded" else "embedded",
            "server.address": call.host,
            "agent_platform.attempt": call.attempt,
        }
        if call.model:
            attributes["gen_ai.request.model"] = call.model
        # With several answers the turn's counts are of none of them.
        is_answer = call.capability == Capability.CHAT and call.error is None
        if is_answer and not live.progress.steps:
            attributes |= _answer_attributes(live)
        span = self._tracer.start_span(
            f"{operation} {call.model or ''}".rstrip(),
            context=parent,
            kind=self._trace.SpanKind.CLIENT,
            start_time=self._nanoseconds(call.started_at),
            attributes=attributes,
        )
        if call.first_item_at is not None:
            name = "first_token" if call.capability == Capability.CHAT else "first_item"
            span.add_event(name, timestamp=self._nanoseconds(call.first_item_at))
        if call.error:
            span.set_attribute("error.type", call.error.code)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, call.error.code))
        span.end(self._nanoseconds(call.ended_at))

    def _tool_call(self, parent: Any, call: Call) -> None:  # noqa: ANN401  # a span
        """Make the span of a tool call that this attempt has begun: ids and sizes, no content."""
        if not (call.is_ours and call.started_at and call.ended_at):
            return
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": str(call.id),
            "agent_platform.tool_call.step": call.step,
            "agent_platform.tool_call.attempt": call.attempt,
            "agent_platform.tool_call.status": call.status.value,
            "agent_platform.tool_call.arguments_bytes": len(call.arguments.encode()),
            "agent_platform.tool_call.result_bytes": len((call.result or "").encode()),
        }
        if call.tool:
            attributes["gen_ai.tool.type"] = "function"
            attributes["agent_platform.tool.id"] = str(call.tool.tool_id)
            attributes["agent_platform.tool.version"] = call.tool.version
            attributes["agent_platform.tool.kind"] = call.tool.kind.value
        span = self._tracer.start_span(
            f"execute_tool {call.name}",
            context=parent,
            kind=self._trace.SpanKind.CLIENT,
            start_time=int(call.started_at.timestamp() * _NANOSECONDS),
            attributes=attributes,
        )
        if call.error_code:
            span.set_attribute("error.type", call.error_code)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, call.error_code))
        span.end(int(call.ended_at.timestamp() * _NANOSECONDS))

    def _nanoseconds(self, monotonic_seconds: float) -> int:
        return int((monotonic_seconds + self._epoch_seconds) * _NANOSECONDS)


@asynccontextmanager
async def open_tracer(settings: Settings) -> AsyncGenerator[TurnTracer | None]:
    """Open what exports traces, where the settings name a collector. Raises `StartRefused`."""
    if settings.otel_exporter_otlp_endpoint is None:
        yield None
        return
    tracer = TurnTracer(settings)
    try:
        yield tracer
    finally:
        await tracer.shut_down()


def _parse_headers(settings: Settings) -> dict[str, str]:
    """Read `name=value,...` as OpenTelemetry defines it."""
    secret = settings.otel_exporter_otlp_headers
    pairs = (secret.get_secret_value() if secret else "").split(",")
    named = (pair.partition("=") for pair in pairs if "=" in pair)
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in named}


def _root_attributes(live: LiveTurn, outcome: Outcome) -> Mapping[str, Any]:
    record = live.record
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": str(record.session_id),
        "agent_platform.turn.id": str(record.id),
        "agent_platform.workspace.id": str(record.workspace_id),
        "agent_platform.turn.status": outcome.status.value,
        "agent_platform.turn.modality": record.modality.value,
        "agent_platform.turn.attempt": record.attempt,
    }
    if live.context.request_id:
        attributes["agent_platform.request.id"] = live.context.request_id
    return attributes


def _answer_attributes(live: LiveTurn) -> Mapping[str, Any]:
    progress = live.progress
    attributes: dict[str, Any] = {}
    if progress.model:
        attributes["gen_ai.response.model"] = progress.model
    if progress.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [progress.finish_reason]
    if progress.usage.prompt_tokens is not None:
        attributes["gen_ai.usage.input_tokens"] = progress.usage.prompt_tokens
    if progress.usage.completion_tokens is not None:
        attributes["gen_ai.usage.output_tokens"] = progress.usage.completion_tokens
    return attributes

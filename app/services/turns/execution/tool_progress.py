"""The progress and the end of calls, as events."""

from collections.abc import Callable

from app.models import CallStatus
from app.services.tool_ports import ToolProgress
from app.services.turns.events import (
    ToolCallCompleted,
    ToolCallFailed,
    ToolCallProblem,
    ToolCallProgress,
)
from app.services.turns.execution.event_log import EventLog
from app.services.turns.steps import Call

_PREVIEW_BYTES = 2048


def progress_sink(log: EventLog, call: Call) -> Callable[[ToolProgress], None]:
    """Return a function that makes an event of what it is given."""

    def emit(progress: ToolProgress) -> None:
        log.emit(ToolCallProgress(call.id, progress.progress, progress.total, progress.message))

    return emit


def emit_end(log: EventLog, call: Call) -> None:
    """Emit how a call ended."""
    if call.status is not CallStatus.COMPLETED:
        problem = ToolCallProblem(call.error_code or "tool-failed", call.error_detail or "")
        log.emit(ToolCallFailed(call.id, call.status.value, problem))
        return
    seconds = call.duration_seconds
    duration_ms = None if seconds is None else round(seconds * 1000, 1)
    preview = (call.result or "").encode()[:_PREVIEW_BYTES].decode(errors="ignore")
    files = [image.file_id for image in call.images]
    log.emit(ToolCallCompleted(call.id, call.status.value, preview, duration_ms, files))

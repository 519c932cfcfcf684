"""What MCP servers say about the progress of calls, as events."""

from collections.abc import Callable

from app.services.tool_ports import ToolProgress
from app.services.turns.events import ToolCallProgress
from app.services.turns.execution.event_log import EventLog
from app.services.turns.steps import Call


def progress_sink(log: EventLog, call: Call) -> Callable[[ToolProgress], None]:
    """Return a function that makes an event of what it is given."""

    def emit(progress: ToolProgress) -> None:
        log.emit(ToolCallProgress(call.id, progress.progress, progress.total, progress.message))

    return emit

"""What a turn's own request asks of the model beside its agent."""

from dataclasses import replace

from app.services.ports import ONE_FUNCTION, ChatOptions, ChatRequest, UpstreamIncomplete
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.records import TurnRequest


def with_own_request(request: ChatRequest, own: TurnRequest) -> ChatRequest:
    """Return the request with what the turn's own request asks of the model."""
    if not own.tools:
        return replace(request, options=own.options)
    options = own.options or ChatOptions()
    return replace(request, tools=own.tools, may_call_tools=own.may_call_tools, options=options)


def check_callers_calls(live: LiveTurn) -> None:
    """Raise `UpstreamIncomplete` where the model called what the caller does not have."""
    request = live.record.request or TurnRequest()
    names = {tool.name for tool in request.tools}
    choice = request.options.tool_choice if request.options else None
    if choice and choice.startswith(ONE_FUNCTION):
        names = {choice.removeprefix(ONE_FUNCTION)}
    if any(call.name not in names for call in live.progress.calls.values()):
        raise UpstreamIncomplete("The model called a tool that it was not given.")

"""One call of a tool outside of a turn, for whoever defines it."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson

from app.core.value_objects import value_object
from app.models import new_id
from app.services.tool_ports import Effect, PinnedTool, ToolCallRequest, ToolKind, ToolOutcome
from app.services.tools.errors import ToolNotTestable
from app.services.tools.runners import ToolRunners


@value_object(frozen=True, slots=True)
class TrialRequest:
    """The request, with secrets masked."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: str | None


@value_object(frozen=True, slots=True)
class TrialError:
    """Why the call failed."""

    code: str
    detail: str


@value_object(frozen=True, slots=True)
class ToolTrial:
    """What the call did, with the fields of the API's response."""

    status: ToolOutcome
    request: TrialRequest | None
    http_status: int | None
    result: str
    error: TrialError | None
    duration_ms: float


class ToolTester:
    """Runs single calls with the runner that turns use."""

    def __init__(self, runner: ToolRunners) -> None:
        self._runner = runner

    async def test(
        self,
        workspace_id: UUID,
        tool: PinnedTool,
        arguments: Mapping[str, Any],
        *,
        user_id: str | None,
        is_confirmed: bool,
    ) -> ToolTrial:
        """Call `tool` once, unless the arguments break its schema. Raises `ToolNotTestable`."""
        if tool.kind is ToolKind.CLIENT:
            raise ToolNotTestable(f"The caller's own code runs tools of the kind {tool.kind}.")
        if tool.effect is Effect.ONCE and not is_confirmed:
            raise ToolNotTestable(
                'The effect of this tool is `once`, so a test does harm: send `"confirm": true`.'
            )
        text = orjson.dumps(arguments).decode()
        if problem := self._runner.problem_of(tool, text):
            error = TrialError("arguments-invalid", problem)
            return ToolTrial(ToolOutcome.FAILED, None, None, problem, error, 0)
        call = ToolCallRequest(
            id=new_id(),
            workspace_id=workspace_id,
            session_id=None,
            turn_id=None,
            agent_id=None,
            user_id=user_id,
            tool=tool,
            arguments=text,
        )
        traced = await self._runner.run_traced(call)
        result, request = traced.result, traced.request
        if result.question:
            raise ToolNotTestable(f"The MCP server asks something: {result.question.message}")
        return ToolTrial(
            result.outcome,
            TrialRequest(
                request.method,
                request.url,
                request.headers,
                request.body.decode(errors="replace") if request.body is not None else None,
            )
            if request
            else None,
            result.http_status,
            result.text,
            TrialError(result.error_code, result.error_detail or "") if result.error_code else None,
            result.duration_ms,
        )

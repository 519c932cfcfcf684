"""Serves what the server asks for: lists of tools, and calls."""

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import mcp_types as types
from anyio.abc import TaskGroup
from mcp import MCPError
from pydantic import TypeAdapter, ValidationError

from app.core.storable_text import storable_text
from app.services.mcp_port import McpError, McpFailure
from app.services.mcp_service.contents import (
    images_of,
    result_fields,
    storable_value,
    tool_fields,
)
from app.services.mcp_service.guarded_transport import UNAUTHORIZED, Attempt, current_attempt
from app.services.mcp_service.session_pool import ConnectionPool, McpConnection
from app.services.outbound.addresses import Guard, parse_allowed_addresses
from app.services.sandbox.frames import Fields

if TYPE_CHECKING:
    from app.services.mcp_service.worker import EventWriter

_MOST_PAGES = 20
_MOST_TOOLS = 512
_LIST_BYTES = 1 << 20
_ANSWER_CHARACTERS = 2000
_PROGRESS_SECONDS = 0.2
_PROGRESS_CHARACTERS = 500
_STATE_BYTES = 64 * 1024
_POLLS = 50
"""How often a call is sent again that its server wants to be sent again."""
_IMAGES = "images"
_Outcome = types.CallToolResult | types.InputRequiredResult
_OUTCOME: TypeAdapter[_Outcome] = TypeAdapter(_Outcome)


class RunningRequest:
    """One request of the server's, while it is served."""

    def __init__(self, fields: Fields, send: Callable[[Fields], Any]) -> None:
        self.number = int(fields["id"])
        self.attempt = Attempt(
            int(fields.get("max_bytes") or _LIST_BYTES), int(fields.get("max_image_bytes") or 0)
        )
        self.scope = anyio.CancelScope()
        self.deadline = anyio.CancelScope()
        self.timeout_seconds = float(fields["timeout_seconds"])
        self._send = send
        self._answer: Fields | None = None
        self._answered = anyio.Event()
        self._last_progress = -math.inf

    async def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Tell the server how far the call is, a few times a second at most."""
        now = anyio.current_time()
        if now - self._last_progress < _PROGRESS_SECONDS or not math.isfinite(progress):
            return
        self._last_progress = now
        await self._send(
            {
                "event": "progress",
                "id": self.number,
                "progress": progress,
                "total": total if total is not None and math.isfinite(total) else None,
                "message": message[:_PROGRESS_CHARACTERS] if message else None,
            }
        )

    async def ask(self, params: types.ElicitRequestParams) -> types.ElicitResult:
        """Pass on a question that a server of the older era asks in mid-call; wait for the answer.

        The time of the call stands still meanwhile.
        """
        self._answered, self._answer = anyio.Event(), None
        self.deadline.deadline = math.inf
        question = {"event": "question", "id": self.number, "question": question_fields(params, {})}
        await self._send(question)
        await self._answered.wait()
        self.deadline.deadline = anyio.current_time() + self.timeout_seconds
        return elicit_result(self._answer or {})

    def answer(self, fields: Fields) -> None:
        """Take the answer to the question."""
        self._answer = fields
        self._answered.set()


class CallServer:
    """Lists tools and calls them, over pooled connections."""

    def __init__(self, tasks: TaskGroup, frames: "EventWriter", opening: Fields) -> None:
        guard = Guard(parse_allowed_addresses(opening["allowed_addresses"]))
        self.pool = ConnectionPool(tasks, guard, opening["proxy"])
        self._frames = frames
        self._running: dict[int, RunningRequest] = {}

    def cancel(self, number: int) -> None:
        """Break a request off; its server is told."""
        if request := self._running.get(number):
            request.scope.cancel()

    def answer(self, number: int, fields: Fields) -> None:
        """Pass an answer to the call that asked."""
        if request := self._running.get(number):
            request.answer(fields)

    async def serve(self, fields: Fields) -> None:
        """Serve a request, and send its end."""
        request = RunningRequest(fields, self._frames.send)
        self._running[request.number] = request
        current_attempt.set(request.attempt)
        end: Fields = {"failure": McpFailure.BROKEN, "message": "The call was cancelled."}
        try:
            with request.scope:
                end = await self._end_of(request, fields)
        finally:
            del self._running[request.number]
            request.attempt.end()
        is_call, is_program = fields["op"] == "call", "program" in fields["target"]
        was_sent = is_call and (request.attempt.was_sent or is_program)
        images: Sequence[bytes] = end.pop(_IMAGES, ())
        end |= {"event": "end", "id": request.number, "was_sent": was_sent}
        end["image_bytes"] = [len(image) for image in images]
        await self._frames.send(end, b"".join(images))

    async def _end_of(self, request: RunningRequest, fields: Fields) -> Fields:
        serve = {"list": self._list, "call": self._call, "oauth": self._oauth}[fields["op"]]
        try:
            with anyio.move_on_after(request.timeout_seconds) as request.deadline:
                return await serve(request, fields)
        except McpError as error:
            return {"failure": error.failure, "message": str(error), "answer": error.answer}
        except Exception as error:  # noqa: BLE001  # a fault of the SDK's ends one call, not all
            message = f"The protocol was not followed ({type(error).__name__})."
            return {"failure": McpFailure.REFUSED, "message": message}
        return {"failure": McpFailure.TIMEOUT, "message": "It did not answer in time."}

    async def _list(self, request: RunningRequest, fields: Fields) -> Fields:
        tools: list[types.Tool] = []
        async with self.pool.connection(fields["target"]) as connection:
            session = connection.client.session
            cursor = None
            for _ in range(_MOST_PAGES):
                params = types.PaginatedRequestParams(cursor=cursor)
                async with _translated(request, connection):
                    page = await session.list_tools(params=params)
                tools += page.tools
                cursor = page.next_cursor
                if cursor is None or len(tools) > _MOST_TOOLS:
                    break
            if cursor is not None or len(tools) > _MOST_TOOLS:
                raise McpError(
                    McpFailure.TOO_LARGE,
                    f"It lists more than {_MOST_TOOLS} tools, or {_MOST_PAGES} pages of them.",
                )
            info = connection.client.server_info
            return {
                "protocol_version": connection.client.protocol_version,
                "server_name": storable_text(info.name[:200]) if info else "",
                "server_version": storable_text(info.version[:100]) if info else "",
                "tools": [tool_fields(tool) for tool in tools],
            }

    async def _oauth(self, request: RunningRequest, fields: Fields) -> Fields:
        del request  # its limits hold by `current_attempt`
        from app.services.mcp_service.oauth import serve_oauth

        return await serve_oauth(self.pool.send, fields)

    async def _call(self, request: RunningRequest, fields: Fields) -> Fields:
        """Call once; again where the session was lost before anything ran."""
        async with self.pool.connection(fields["target"]) as connection:
            try:
                return await self._call_over(connection, request, fields)
            except McpError:
                if not connection.lost_session(request.attempt.status):
                    raise
                self.pool.discard(connection)
        request.attempt.failure, request.attempt.was_sent = None, False
        async with self.pool.connection(fields["target"]) as connection:
            return await self._call_over(connection, request, fields)

    async def _call_over(
        self, connection: McpConnection, request: RunningRequest, fields: Fields
    ) -> Fields:
        if not connection.is_modern and connection.users == 1:
            connection.asks = request
        responses, state = _first_answer(fields)
        try:
            for poll in range(_POLLS):
                params = types.CallToolRequestParams(
                    name=fields["tool"],
                    arguments=fields["arguments"],
                    input_responses=responses,
                    request_state=state,
                    _meta=fields["meta"],
                )
                async with _translated(request, connection):
                    outcome = await connection.client.session.send_request(
                        types.CallToolRequest(params=params),
                        _OUTCOME,
                        progress_callback=request.progress,
                    )
                if isinstance(outcome, types.CallToolResult):
                    result = result_fields(outcome)
                    if len(result["text"]) > fields["max_bytes"]:  # of a program, or with images
                        raise McpError(McpFailure.TOO_LARGE, "Its result has more than 1 MB.")
                    return {"result": result, _IMAGES: images_of(outcome)}
                if outcome.input_requests:
                    return {"question": _question(outcome)}
                responses, state = None, outcome.request_state
                await anyio.sleep(min(0.05 * 2**poll, 1.0))
        finally:
            connection.asks = None if connection.asks is request else connection.asks
        raise McpError(McpFailure.REFUSED, "It wants the call to be sent again and again.")


@asynccontextmanager
async def _translated(request: RunningRequest, connection: McpConnection) -> AsyncGenerator[None]:
    """Turn what the SDK raises, and what the transport noted, into `McpError`."""
    attempt = request.attempt
    attempt.scope = anyio.CancelScope()
    try:
        with attempt.scope:
            yield
    except MCPError as error:
        raise _error(error, attempt) from None
    except (ValidationError, ValueError) as error:
        message = "What it answered is not MCP."
        raise McpError(attempt.failure or McpFailure.REFUSED, attempt.message or message) from error
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        connection.is_lost = True
        raise McpError(McpFailure.BROKEN, "The connection ended before the answer did.") from None
    if attempt.scope.cancelled_caught:
        raise McpError(attempt.failure or McpFailure.BROKEN, attempt.message)


def _error(error: MCPError, attempt: Attempt) -> McpError:
    if attempt.failure is not None:
        return McpError(attempt.failure, attempt.message)
    status = attempt.status
    if status in UNAUTHORIZED:
        return McpError(McpFailure.UNAUTHORIZED, f"It answered with HTTP status {status}.")
    if error.code == types.CONNECTION_CLOSED:
        return McpError(McpFailure.BROKEN, "The connection ended before the answer did.")
    if error.code == types.PARSE_ERROR and error.message.startswith("Failed to parse"):
        return McpError(McpFailure.BROKEN, "Its answer is cut off, or is not MCP.")
    answer = error.message[:_ANSWER_CHARACTERS]
    if status is not None and status >= 400:  # noqa: PLR2004  # an error
        return McpError(
            McpFailure.REFUSED, f"It answered with HTTP status {status}.", answer=answer
        )
    return McpError(McpFailure.REFUSED, f"It answered with the error {error.code}.", answer=answer)


def _question(outcome: types.InputRequiredResult) -> Fields:
    """Return the fields of `McpQuestion`. Raises `McpError`."""
    requests = outcome.input_requests or {}
    if len(requests) != 1:
        raise McpError(McpFailure.REFUSED, "It asks several questions at once.")
    [(key, request)] = requests.items()
    if not isinstance(request, types.ElicitRequest):
        raise McpError(McpFailure.REFUSED, "It asks for what this server does not give.")
    if len(outcome.request_state or "") > _STATE_BYTES:
        raise McpError(McpFailure.REFUSED, "Its question is too long.")
    state: Fields = {"key": key, "request_state": outcome.request_state}
    if storable_value(state) != state:  # it must come back as it is
        raise McpError(McpFailure.REFUSED, "Its question has a state that cannot be kept.")
    return question_fields(request.params, state)


def question_fields(params: types.ElicitRequestParams, state: Fields) -> Fields:
    """Return the fields of `McpQuestion`."""
    is_form = isinstance(params, types.ElicitRequestFormParams)
    return {
        "message": params.message[:_ANSWER_CHARACTERS],
        "form": storable_value(params.requested_schema) if is_form else None,
        "url": None if is_form else params.url[:_ANSWER_CHARACTERS],
        "state": state,
    }


def _first_answer(fields: Fields) -> tuple[types.InputResponses | None, str | None]:
    question, answer = fields.get("question"), fields.get("answer")
    if not question or answer is None:
        return None, None
    return {question["key"]: elicit_result(answer)}, question["request_state"]


def elicit_result(answer: Fields) -> types.ElicitResult:
    """Return an answer as the SDK has it; without one it is `cancel`."""
    return types.ElicitResult(action=answer.get("action", "cancel"), content=answer.get("content"))

"""`/v1/realtime`: a WebSocket that speaks the GA form of OpenAI's Realtime protocol."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import anyio
import orjson
from starlette.types import Receive, Scope, Send

from app.core.errors import AppError
from app.core.request_context import current_context
from app.core.security import Caller, CallerKind
from app.http.openai_errors import InvalidParameter
from app.http.permissions import WEBSOCKET_POLICIES
from app.http.protocol import ABORT_CONNECTION
from app.http.query_parameters import require_known_parameters
from app.http.upgrade_refusal import refuse_upgrade
from app.routers.agent_names import agent_of
from app.routers.realtime.client_events import ClientEvents
from app.routers.realtime.frames import Frame, Frames
from app.routers.realtime.route import PATH
from app.routers.realtime.session_settings import SessionSettings
from app.services.crud import session_not_found
from app.services.identity import OpenStreamRegistry, client_secrets
from app.services.live_voice import LiveService
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.line import Line
from app.services.live_voice.sessions import BUILT_IN_AGENT

SUBPROTOCOL = "realtime"
_PARAMETERS = ("model", "session_id", "after")
_NORMAL, _GOING_AWAY, _POLICY_VIOLATION, _SERVICE_RESTART = 1000, 1001, 1008, 1012
_LONGEST_REASON_BYTES = 120


async def serve_realtime(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one WebSocket; what is refused is answered before the upgrade."""
    state: dict[str, Any] = scope["state"]
    caller: Caller = state["caller"]
    live: LiveService = state["live"]
    await receive()  # `websocket.connect`
    try:
        WEBSOCKET_POLICIES[PATH].check(caller)
        query = _query(scope)
        async with state["database"].reading() as db:
            configuration = await client_secrets.configuration_of(db, caller)
        named = configuration.get("model") or query.get("model")
        agent = agent_of(str(named)) if named else None
        session = await live.find_session(caller, agent, _session_id(query, scope, caller))
        missed = await session.messages_after(query["after"]) if query.get("after") else ()
        with live.place(caller):
            model = str(named or BUILT_IN_AGENT)
            settings = SessionSettings(
                model, session.id.hex, int(time.time() + live.times.line_seconds)
            )
            voices: frozenset[str] | None = state["voice"].voice_names
            line = live.open(caller, session, settings.update(configuration, voices))
            line.show(missed)
            await send({"type": "websocket.accept", "subprotocol": _subprotocol(scope)})
            await _Connection(scope, receive, send, line, settings, voices).serve()
    except LiveInputRefused as refused:
        error = InvalidParameter(refused.param or "after", refused.detail, refused.reason)
        await refuse_upgrade(error, scope, send)
    except AppError as error:
        await refuse_upgrade(error, scope, send)


class _Connection:
    """One open WebSocket: reads events, writes frames, and ends for one of several reasons."""

    def __init__(  # noqa: PLR0913, PLR0917  # a part each
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        line: Line,
        settings: SessionSettings,
        voices: frozenset[str] | None,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._line = line
        self._live: LiveService = scope["state"]["live"]
        self._times = self._live.times
        self._frames = Frames(settings)
        self._events = ClientEvents(line, settings, self._frames, voices)
        self._scope_of_tasks = anyio.CancelScope()
        self._close_code, self._close_reason = _NORMAL, ""
        self._is_open = True
        now = time.monotonic()
        self._ends_at, self._last_event_at = now + self._times.line_seconds, now

    async def serve(self) -> None:
        state = self._scope["state"]
        open_streams: OpenStreamRegistry = state["open_streams"]
        with open_streams.cut_when_refused(state["caller"], self._revoke), self._scope_of_tasks:
            async with self._line.running(), anyio.create_task_group() as tasks:
                tasks.start_soon(self._guarded, self._write)
                tasks.start_soon(self._guarded, self._watch)
                await self._guarded(self._read)
        if self._is_open:
            with anyio.CancelScope(shield=True), suppress(Exception):
                await self._close()

    async def _guarded(self, work: Callable[[], Any]) -> None:
        """Run a part until it ends; the others end with it."""
        try:
            await work()
        except TimeoutError:  # the client reads nothing
            self._abort()
        except OSError:  # it has left
            self._is_open = False
        finally:
            self._scope_of_tasks.cancel()

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._is_open = False
                return
            self._last_event_at = time.monotonic()
            answer = await self._events.serve(message.get("text") or message.get("bytes"))
            if answer is not None:
                await self._send_frame(answer)
            await asyncio.sleep(0)  # so that a client that never pauses lets others have their turn

    async def _write(self) -> None:
        await self._send_frame(self._frames.session("session.created"))
        while True:
            event = await self._line.next_event()
            for frame in self._frames.encode(event):
                await self._send_frame(frame)

    async def _watch(self) -> None:
        """End the line where its time is over, nobody uses it, or the server drains."""
        while True:
            await anyio.sleep(self._times.check_seconds)
            now = time.monotonic()
            if self._line.is_answering:
                self._last_event_at = now
            if now >= self._ends_at:
                self._end(_GOING_AWAY, "The line has been open for an hour.")
            elif now - self._last_event_at >= self._times.idle_seconds:
                self._end(_NORMAL, "No event came for ten minutes.")
            elif self._live.is_draining and not self._line.is_answering:
                self._end(_SERVICE_RESTART, "The server is shutting down.")
            else:
                continue
            return

    def _revoke(self, error: AppError) -> None:
        if context := current_context():
            context.problem = error
        self._end(_POLICY_VIOLATION, error.title())

    def _end(self, code: int, reason: str) -> None:
        self._close_code, self._close_reason = code, reason
        self._scope_of_tasks.cancel()

    async def _send_frame(self, frame: Frame) -> None:
        text = orjson.dumps(frame).decode()
        async with asyncio.timeout(self._times.reader_seconds):
            try:
                await self._send({"type": "websocket.send", "text": text})
            except RuntimeError as error:  # uvicorn's, where the client has closed meanwhile
                raise ConnectionResetError("the connection is closed") from error

    async def _close(self) -> None:
        reason = self._close_reason.encode()[:_LONGEST_REASON_BYTES].decode(errors="ignore")
        async with asyncio.timeout(self._times.reader_seconds):
            await self._send(
                {"type": "websocket.close", "code": self._close_code, "reason": reason}
            )

    def _abort(self) -> None:
        self._is_open = False
        if abort := self._scope["state"].get(ABORT_CONNECTION):
            abort()


def _query(scope: Scope) -> Mapping[str, str]:
    text = scope.get("query_string", b"").decode("latin-1")
    require_known_parameters(text, _PARAMETERS)
    return {name: values[0] for name, values in parse_qs(text).items()}


def _session_id(query: Mapping[str, str], scope: Scope, caller: Caller) -> UUID | None:
    """Return the session that is named, or that a session token is for."""
    if caller.kind is CallerKind.CLIENT_SECRET and caller.user_id is None:
        return caller.session_id  # any other would be somebody else's
    headers: dict[bytes, bytes] = dict(scope["headers"])
    named = query.get("session_id") or headers.get(b"x-session-id", b"").decode("latin-1")
    if not named:
        return caller.session_id
    try:
        return UUID(named.removeprefix("sess_"))
    except ValueError:
        raise session_not_found() from None


def _subprotocol(scope: Scope) -> str | None:
    return SUBPROTOCOL if SUBPROTOCOL in scope.get("subprotocols", ()) else None

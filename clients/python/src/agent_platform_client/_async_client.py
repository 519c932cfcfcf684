"""The asynchronous client. `scripts/generate-clients` makes the synchronous one of it."""

import json as json_module
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, Unpack
from urllib.parse import quote

import anyio
import httpx2

from agent_platform_client import types
from agent_platform_client._protocol import (
    SILENCE_SECONDS,
    UNSETTLED,
    WAIT_SECONDS,
    Call,
    EventParser,
    RateLimit,
    Retries,
    TurnProgress,
    VoiceReply,
    is_refusal,
    key_header,
    pruned,
    without_none,
)
from agent_platform_client.errors import ApiError, ConnectionLost, NotFound

_EVENTS = {"Accept": "text/event-stream"}
_NO_CONTENT = 204


class _AsyncTransport:
    """Sends requests, and sends them again where that helps and does no harm."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        base_url: str,
        headers: Mapping[str, str],
        retry_seconds: float,
    ) -> None:
        self.http = http
        self.retry_seconds = retry_seconds
        self.rate_limit: RateLimit | None = None
        self._base_url = base_url.rstrip("/")
        self._headers = headers

    async def send(self, call: Call) -> httpx2.Response:
        """Return a whole response, and repeat the request until it is one."""
        retries = Retries(self.retry_seconds)
        was_lost = False
        while True:
            try:
                response = await self.open(call, retries)
                try:
                    await response.aread()
                finally:
                    await response.aclose()
            except httpx2.TransportError as error:
                was_lost = True
                was_sent = not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
                await anyio.sleep(retries.after_loss(call, error, was_sent=was_sent))
            except NotFound:
                if was_lost and call.method == "DELETE":  # by the request whose answer was lost
                    return httpx2.Response(_NO_CONTENT)
                raise
            else:
                return response

    async def open(self, call: Call, retries: Retries) -> httpx2.Response:
        """Return a response without its body; a refusal is waited for or raised."""
        while True:
            request = self.http.build_request(
                call.method,
                self._base_url + quote(call.path, safe="/?=&%-._~:+,"),
                params=call.params or None,
                json=call.json,
                data=call.form,
                files=call.files,
                headers={**self._headers, **call.headers},
            )
            response = await self.http.send(request, stream=True)
            self.rate_limit = RateLimit.from_headers(response.headers) or self.rate_limit
            if not is_refusal(response.status_code):
                return response
            try:
                body = await response.aread()
            finally:
                await response.aclose()
            pause = retries.after_refusal(call, response.status_code, response.headers, body)
            await anyio.sleep(pause)


class AsyncAgentPlatform:
    """A client of one server; `base_url` is its address, `api_key` a key or token of it.

    Requests are repeated for `retry_seconds` where that does no harm: after lost connections, and
    after 429 and 503 as `Retry-After` says. Methods raise `ApiError` and `ConnectionLost`.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        workspace_id: str | None = None,
        retry_seconds: float = 60,
        http_client: httpx2.AsyncClient | None = None,
    ) -> None:
        headers = {"User-Agent": "agent-platform-client-python/0.2.0"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        if workspace_id:
            headers["X-Workspace-Id"] = workspace_id
        self._owns_http = http_client is None
        http = http_client or httpx2.AsyncClient(timeout=httpx2.Timeout(SILENCE_SECONDS, connect=5))
        self._transport = _AsyncTransport(http, base_url, headers, retry_seconds)

    @property
    def rate_limit(self) -> RateLimit | None:
        """The caller's limit, as the last response told it."""
        return self._transport.rate_limit

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they are of an `http_client` that was given."""
        if self._owns_http:
            await self._transport.http.aclose()

    # agents

    async def create_agent(
        self, *, idempotency_key: str | None = None, **fields: Unpack[types.AgentCreate]
    ) -> types.AgentRead:
        """Create an agent."""
        return await self._json("POST", "/agents", fields, key_header(idempotency_key))

    def list_agents(self, *, archived: bool = False) -> AsyncIterator[types.AgentRead]:
        """Yield all agents, newest first, page by page."""
        return self._list("/agents", {"archived": archived})

    async def get_agent(self, agent_id: str) -> types.AgentRead:
        """Return an agent."""
        return await self._json("GET", f"/agents/{agent_id}")

    async def update_agent(
        self, agent_id: str, **changes: Unpack[types.AgentUpdate]
    ) -> types.AgentRead:
        """Change the given fields; `None` resets one to the server's default."""
        return await self._json("PATCH", f"/agents/{agent_id}", changes)

    async def archive_agent(self, agent_id: str) -> None:
        """Archive an agent, which then takes no new messages."""
        await self._json("DELETE", f"/agents/{agent_id}")

    # sessions

    async def create_session(
        self, *, idempotency_key: str | None = None, **fields: Unpack[types.SessionCreate]
    ) -> types.SessionRead:
        """Create a conversation, or import one with its `messages`."""
        return await self._json("POST", "/sessions", fields, key_header(idempotency_key))

    def list_sessions(
        self,
        *,
        agent_id: str | None = None,
        user_id: str | None = None,
        q: str | None = None,
        updated_after: str | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> AsyncIterator[types.SessionRead]:
        """Yield all conversations, newest first, page by page."""
        members = json_module.dumps(metadata) if metadata else None
        filters = without_none(
            agent_id=agent_id, user_id=user_id, q=q, updated_after=updated_after, metadata=members
        )
        return self._list("/sessions", filters)

    async def get_session(self, session_id: str) -> types.SessionHistory:
        """Return a conversation with all of its messages."""
        return await self._json("GET", f"/sessions/{session_id}")

    def list_messages(self, session_id: str) -> AsyncIterator[types.MessageRead]:
        """Yield the messages of a conversation, oldest first, page by page."""
        return self._list(f"/sessions/{session_id}/messages", {})

    async def update_session(
        self, session_id: str, **changes: Unpack[types.SessionUpdate]
    ) -> types.SessionRead:
        """Change title, user, metadata or agent; `None` clears title and user."""
        return await self._json("PATCH", f"/sessions/{session_id}", changes)

    async def fork_session(
        self, session_id: str, *, up_to_seq: int | None = None, idempotency_key: str | None = None
    ) -> types.SessionRead:
        """Copy a conversation, or its messages up to `up_to_seq`."""
        path, body = f"/sessions/{session_id}/fork", without_none(up_to_seq=up_to_seq)
        return await self._json("POST", path, body, key_header(idempotency_key))

    async def delete_session(self, session_id: str) -> None:
        """Delete a conversation for good."""
        await self._json("DELETE", f"/sessions/{session_id}")

    async def create_session_token(
        self, session_id: str, *, ttl_seconds: int = 900
    ) -> types.TokenRead:
        """Create a token for one session, for a browser."""
        path, body = f"/sessions/{session_id}/tokens", {"ttl_seconds": ttl_seconds}
        return await self._json("POST", path, body, is_repeatable=False)

    # files

    async def upload_file(
        self, data: bytes, name: str = "file", *, idempotency_key: str | None = None
    ) -> types.FileRead:
        """Upload an image or a document for messages."""
        headers = key_header(idempotency_key)
        call = Call("POST", "/files", files={"file": (name, data)}, headers=headers)
        return (await self._transport.send(call)).json()

    async def delete_file(self, file_id: str) -> None:
        """Delete a file that no message uses."""
        await self._json("DELETE", f"/files/{file_id}")

    # messages

    async def send_text(
        self,
        session_id: str,
        content: str | Sequence[types.Content],
        *,
        on_busy: types.BusyPolicy = "enqueue",
        response_format: types.ResponseFormatFields | None = None,
        idempotency_key: str | None = None,
    ) -> types.ReplyRead:
        """Send a message and return the answer. Raises `TurnFailed`.

        With `response_format` the answer is JSON by a schema, and `reply["output"]` its value.
        """
        stream = self.stream_text(
            session_id,
            content,
            on_busy=on_busy,
            response_format=response_format,
            idempotency_key=idempotency_key,
        )
        return await stream.final_reply()

    def stream_text(
        self,
        session_id: str,
        content: str | Sequence[types.Content],
        *,
        on_busy: types.BusyPolicy = "enqueue",
        response_format: types.ResponseFormatFields | None = None,
        idempotency_key: str | None = None,
    ) -> "AsyncTurnStream":
        """Send a message and return its events; nothing is sent before they are iterated over."""
        body = without_none(
            session_id=session_id,
            content=content,
            on_busy=on_busy,
            response_format=response_format,
        )
        headers = key_header(idempotency_key) | _EVENTS
        call = Call("POST", "/messages/text", json=body, headers=headers)
        return AsyncTurnStream(self._transport, TurnProgress(call))

    async def start_text(
        self,
        session_id: str,
        content: str | Sequence[types.Content],
        *,
        on_busy: types.BusyPolicy = "enqueue",
        response_format: types.ResponseFormatFields | None = None,
        idempotency_key: str | None = None,
    ) -> types.TurnWithMessage:
        """Send a message whose turn runs in the background; `wait_turn` waits for its end."""
        body = without_none(
            session_id=session_id,
            content=content,
            on_busy=on_busy,
            response_format=response_format,
        )
        headers = key_header(idempotency_key) | {"Prefer": "respond-async"}
        return await self._json("POST", "/messages/text", body, headers)

    async def send_voice(
        self,
        session_id: str,
        audio: bytes,
        *,
        on_busy: types.BusyPolicy = "enqueue",
        idempotency_key: str | None = None,
    ) -> VoiceReply:
        """Send a recording (wav, mp3, m4a, webm, ogg, flac); return the answer.

        Raises `TurnFailed`.
        """
        stream = self.stream_voice(
            session_id, audio, on_busy=on_busy, idempotency_key=idempotency_key
        )
        reply = await stream.final_reply()
        turn_id, transcript = stream.turn_id or "", stream.transcript or ""
        try:
            mp3 = await self.get_turn_audio(turn_id)
        except NotFound:  # the server keeps no sound: the sentences one after the other
            mp3 = stream.mp3
        return VoiceReply(turn_id, transcript, reply, mp3)

    def stream_voice(
        self,
        session_id: str,
        audio: bytes,
        *,
        on_busy: types.BusyPolicy = "enqueue",
        idempotency_key: str | None = None,
    ) -> "AsyncTurnStream":
        """Send a recording and return its events: transcript, text, a clip for each sentence."""
        call = Call(
            "POST",
            "/messages/voice",
            form={"session_id": session_id, "on_busy": on_busy},
            files={"audio": ("recording", audio)},
            headers=key_header(idempotency_key) | _EVENTS,
        )
        return AsyncTurnStream(self._transport, TurnProgress(call))

    # turns

    def list_turns(
        self, *, session_id: str | None = None, status: types.TurnStatus | None = None
    ) -> AsyncIterator[types.TurnRead]:
        """Yield turns, newest first, page by page."""
        return self._list("/turns", without_none(session_id=session_id, status=status))

    async def get_turn(self, turn_id: str) -> types.TurnWithMessage:
        """Return a turn as it is now, with its answer."""
        return await self._json("GET", f"/turns/{turn_id}")

    async def wait_turn(self, turn_id: str) -> types.TurnWithMessage:
        """Return a turn once it does not run any more, over lost connections and restarts."""
        while True:
            call = Call("GET", f"/turns/{turn_id}", {"wait_seconds": WAIT_SECONDS})
            turn: types.TurnWithMessage = (await self._transport.send(call)).json()
            if turn["status"] not in UNSETTLED:
                return turn

    def follow_turn(self, turn_id: str, *, after: int = 0) -> "AsyncTurnStream":
        """Return the events of a turn above `after`, until its end."""
        first = Call("GET", f"/turns/{turn_id}/events", headers=_EVENTS)
        return AsyncTurnStream(self._transport, TurnProgress(first, turn_id, after))

    async def cancel_turn(
        self, turn_id: str, *, played_ms: int | None = None
    ) -> types.TurnWithMessage:
        """Cancel a turn; `played_ms` says how much of its sound was heard."""
        body = without_none(played_ms=played_ms)
        return await self._json("POST", f"/turns/{turn_id}/cancel", body)

    async def resolve_tool_call(
        self, call_id: str, **action: Unpack[types.ToolCallResolve]
    ) -> types.ToolCallDetail:
        """Send the output of a tool of your own, approve or deny a call, or answer a question.

        A stream goes on by itself behind `turn.requires_action`.
        """
        return await self._json("POST", f"/tool-calls/{call_id}/resolution", action)

    async def get_turn_audio(self, turn_id: str) -> bytes:
        """Return the spoken answer of a turn as MP3."""
        return (await self._transport.send(Call("GET", f"/turns/{turn_id}/audio"))).content

    async def get_usage(self, **filters: str) -> list[types.UsageRowRead]:
        """Report usage: `group_by`, `user_id` and others, as `GET /usage` takes them."""
        return (await self._transport.send(Call("GET", "/usage", filters))).json()

    # requests

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # JSON of an endpoint that has no method here
        """Send any other request and return its JSON; POST is not repeated without a key."""
        call = Call(method, path, params or {}, json, is_repeatable=method != "POST")
        response = await self._transport.send(call)
        return response.json() if response.content else None

    async def _json(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        *,
        is_repeatable: bool = True,
    ) -> Any:  # noqa: ANN401  # the callers name its type
        call = Call(method, path, json=body, headers=headers or {}, is_repeatable=is_repeatable)
        response = await self._transport.send(call)
        return response.json() if response.content else None

    async def _list(self, path: str, params: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        call: Call | None = Call("GET", path, {"limit": 100, **params})
        while call:
            response = await self._transport.send(call)
            for row in response.json():
                yield row
            next_url: str | None = response.links.get("next", {}).get("url")
            call = Call("GET", next_url) if next_url else None


class AsyncTurnStream:
    """The events of one turn, each once and in order, over lost connections and restarts.

    Iterate over it once: it ends with the turn, and raises `TurnFailed` after `turn.failed`. A
    block of `async with` closes the connection; the turn itself goes on.
    """

    def __init__(self, transport: _AsyncTransport, progress: TurnProgress) -> None:
        self._transport = transport
        self._progress = progress
        self._generator = self._events()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        await self._generator.aclose()

    def __aiter__(self) -> AsyncIterator[types.TurnEvent]:
        return self._generator

    @property
    def turn_id(self) -> str | None:
        """The turn's id, once it is accepted."""
        return self._progress.turn_id

    @property
    def last_number(self) -> int:
        """The number of the last event: `follow_turn` goes on `after` it, in another process."""
        return self._progress.last_number

    @property
    def text(self) -> str:
        """The answer so far; empty again where the turn begins anew."""
        return self._progress.text

    @property
    def transcript(self) -> str | None:
        """The transcript of the recording, once it is there."""
        return self._progress.transcript

    @property
    def mp3(self) -> bytes:
        """The sound so far."""
        return self._progress.mp3

    async def final_reply(self) -> types.ReplyRead:
        """Read to the end and return the answer. Raises `TurnFailed`."""
        async for _ in self._generator:
            pass
        return self._progress.reply()

    async def cancel(self, *, played_ms: int | None = None) -> types.TurnWithMessage | None:
        """Cancel the turn, if it is accepted already; the stream then ends by itself."""
        if self.turn_id is None:
            return None
        body = without_none(played_ms=played_ms)
        call = Call("POST", f"/turns/{self.turn_id}/cancel", json=body)
        return (await self._transport.send(call)).json()

    async def _events(self) -> AsyncGenerator[types.TurnEvent, None]:
        retries = Retries(self._transport.retry_seconds)
        while self._progress.outcome is None:
            call = self._progress.next_call()
            reason: Exception = ConnectionLost("the stream ended early")
            try:
                async with aclosing(self._events_of(call, retries)) as events:
                    async for event in events:
                        retries.note_progress()
                        yield event
            except httpx2.TransportError as error:
                reason = error
            except ApiError as error:
                if not pruned(error):
                    raise
                yield await self._read_outcome(error)
            if self._progress.outcome is None:
                await anyio.sleep(retries.after_loss(call, reason))
        self._progress.require_success()

    async def _events_of(
        self, call: Call, retries: Retries
    ) -> AsyncGenerator[types.TurnEvent, None]:
        """Yield the new events of one connection, until it or the turn ends."""
        response, parser = await self._transport.open(call, retries), EventParser()
        try:
            if response.status_code == _NO_CONTENT:  # there are no further events
                yield await self._read_outcome(ConnectionLost("the turn's end is missing"))
            async for piece in response.aiter_bytes():
                for event in parser.feed(piece):
                    if self._progress.take(event):
                        yield event
                if self._progress.outcome:
                    return
        finally:
            await response.aclose()

    async def _read_outcome(self, otherwise: Exception) -> types.TurnEvent:
        """Return how a turn ended whose events are gone. Raises `otherwise` where it runs."""
        call = Call("GET", f"/turns/{self.turn_id}")
        turn: types.TurnWithMessage = (await self._transport.send(call)).json()
        self._progress.outcome = self._progress.outcome_of(turn)
        if self._progress.outcome is None:
            raise otherwise
        return self._progress.outcome

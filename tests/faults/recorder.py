"""A client that writes down what it was told: acknowledged, refused, or left in the dark."""

import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import aiohttp
import anyio

from tests.faults.report import Plan
from tests.support import planted_secrets
from tests.support.provider import Provider
from tests.support.sse import Event, text_of

TERMINAL = {"turn.completed", "turn.failed", "turn.cancelled"}
EVENTS = {"Accept": "text/event-stream"}
BROKEN = (aiohttp.ClientError, TimeoutError, ConnectionError)
ATTEMPT_SECONDS = 60
INSIST_SECONDS = 150


def answer_to(content: str) -> str:
    """Return what the provider says to a message; nobody else says it."""
    words = 3 + crc32(content.encode()) % 30
    return f"To {content} I say" + " word" * words


def talk(provider: Provider, seconds_per_word: float) -> None:
    """Let the provider answer each message in its own words, in a while."""
    # Neighbours of one role are joined; the message itself is the last paragraph.
    provider.chat.text = lambda prompt: answer_to(prompt[-1]["content"].rpartition("\n\n")[2])
    provider.chat.token_delay_seconds = seconds_per_word


@dataclass(frozen=True, slots=True)
class Told:
    """What one attempt came to. `status` 0: the connection broke, nobody knows."""

    status: int
    code: str = ""
    seconds: float = 0
    is_well_formed: bool = True

    def __str__(self) -> str:
        words = f"{self.status} {self.code}".strip()
        return words if self.is_well_formed else f"{words} (ill-formed)"


@dataclass(slots=True)
class Message:
    """What was sent, and everything that the client was told of it."""

    key: str
    session_id: str
    content: str
    streams: bool
    reply: dict[str, Any] | None = None
    """The assistant's message, as it was acknowledged."""
    answers: list[str] = field(default_factory=list[str])
    """Whole bodies of status 200, as they came."""
    told: list[Told] = field(default_factory=list[Told])
    turn_id: str | None = None
    events: list[Event] = field(default_factory=list[Event])
    wrongs: list[str] = field(default_factory=list[str])
    done: anyio.Event = field(default_factory=anyio.Event)

    @property
    def last_event_id(self) -> int:
        return self.events[-1].id or 0 if self.events else 0


@dataclass(slots=True)
class Recorder:
    """Sends messages to any of `urls`, and keeps the book."""

    urls: list[str]
    rng: random.Random
    http: aiohttp.ClientSession
    messages: list[Message] = field(default_factory=list[Message])
    passed: Counter[str] = field(default_factory=Counter[str])
    """How often clients came to `created` and `acknowledged`."""
    run: str = ""
    """In each content, so that no two are equal."""

    @property
    def acknowledged(self) -> list[Message]:
        return [message for message in self.messages if message.reply]

    def tally(self) -> Counter[str]:
        """Count what was told."""
        return Counter(str(told) for message in self.messages for told in message.told)

    def compose(self, session_id: str, *, streams: bool) -> Message:
        """Write a message that has not been sent before."""
        number = len(self.messages)
        content = f"{planted_secrets.SAID} {self.run} {number}"
        key = f"{planted_secrets.IDEMPOTENCY_KEY}-{self.run}-{number}"
        message = Message(key, session_id, content, streams)
        self.messages.append(message)
        return message

    async def open_session(self, agent_id: str) -> str:
        """Open a session, however long it takes."""
        return await self._create("/sessions", {"agent_id": agent_id})

    async def make_agent(self) -> str:
        """Make an agent, however long it takes."""
        return await self._create("/agents", {"name": "Ada", "system_prompt": "You are Ada."})

    async def _create(self, path: str, body: dict[str, str]) -> str:
        key = {"Idempotency-Key": f"{self.run}-{self.rng.getrandbits(64):x}"}
        while True:
            try:
                async with self.http.post(self._url(path), json=body, headers=key) as response:
                    if response.status == 201:
                        return (await response.json())["id"]
                    if response.status < 500:
                        raise AssertionError(await response.text())
            except BROKEN:
                pass
            await anyio.sleep(self.rng.uniform(0.05, 0.2))

    async def insist(self, message: Message, *, pause_seconds: float = 0.1) -> None:
        """Send the message with its key until it is acknowledged, or has ended in another way."""
        give_up_at = time.monotonic() + INSIST_SECONDS
        while not await self.attempt(message):
            if time.monotonic() > give_up_at:
                told = ", ".join(map(str, message.told[-3:]))
                message.wrongs.append(f"not acknowledged in {INSIST_SECONDS} s, but told: {told}")
                return
            await anyio.sleep(self.rng.uniform(0.02, pause_seconds))

    async def attempt(self, message: Message) -> bool:
        """Send the message once, or take its stream up again; tell whether it is acknowledged."""
        if not message.streams:
            return await self._note(message, self._send)
        if message.turn_id and not _has_ended(message) and self.rng.random() < 0.5:
            return await self.resume(message)
        return await self._note(message, self._stream)

    async def resume(self, message: Message) -> bool:
        """Take a stream up after its last event."""
        return await self._note(message, self._resume)

    async def _note(
        self, message: Message, way: Callable[[Message], Coroutine[None, None, Told]]
    ) -> bool:
        begun_at = time.monotonic()
        try:
            told = await way(message)
        except BROKEN as error:
            told = Told(0, type(error).__name__)
        message.told.append(
            Told(told.status, told.code, time.monotonic() - begun_at, told.is_well_formed)
        )
        if message.reply:
            self.passed["acknowledged"] += 1
            message.done.set()
        return message.reply is not None

    async def _send(self, message: Message) -> Told:
        async with self._post(message) as response:
            if response.status != 200:
                return await problem(response)
            message.answers.append(await response.text())
            message.reply = json.loads(message.answers[-1])
            return Told(200)

    async def _stream(self, message: Message) -> Told:
        async with self._post(message, EVENTS) as response:
            if response.status != 200:
                return await problem(response)
            message.events.clear()  # a replay begins with the first event
            return await self._listen(message, response)

    async def _resume(self, message: Message) -> Told:
        headers = EVENTS | {"Last-Event-ID": str(message.last_event_id)}
        url = self._url(f"/turns/{message.turn_id}/events")
        async with self.http.get(url, headers=headers) as response:
            if response.status != 200:
                return await problem(response)
            return await self._listen(message, response)

    async def _listen(self, message: Message, response: aiohttp.ClientResponse) -> Told:
        other = ""
        async for event in read_events(response.content):
            if event.id is None:
                other = event.data.get("code", event.type)
                continue
            if event.id <= message.last_event_id:
                message.wrongs.append(f"event {event.id} came after {message.last_event_id}")
            if _has_ended(message):
                message.wrongs.append(f"{event.type} came after the end")
            message.events.append(event)
            if event.type == "turn.created":
                self.passed["created"] += 1
                message.turn_id = event.data["turn_id"]
        if not _has_ended(message):
            return Told(200, other or "no end")
        last = message.events[-1]
        if last.type != "turn.completed":
            return Told(200, f"{last.type} {last.data.get('error', {}).get('code', '')}")
        message.reply = last.data["message"]
        if text_of(last_attempt(message.events)) != last.data["message"]["content"]:
            message.wrongs.append("the streamed text is not the stored one")
        return Told(200)

    @asynccontextmanager
    async def _post(
        self, message: Message, headers: dict[str, str] | None = None
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        body = {"session_id": message.session_id, "content": message.content}
        keyed = {"Idempotency-Key": message.key} | (headers or {})
        url = self._url("/messages/text")
        async with self.http.post(url, json=body, headers=keyed) as response:
            yield response

    def _url(self, path: str) -> str:
        return self.rng.choice(self.urls) + path


@asynccontextmanager
async def recorder(urls: list[str], seed: int, run: str) -> AsyncGenerator[Recorder]:
    """Open a recorder whose connections have no bound."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_SECONDS, connect=10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        book = Recorder(urls, Plan(seed).rng(f"clients of {run}"), http, run=run)
        yield book
    for message in book.messages:
        shown = json.dumps([message.answers, [event.data for event in message.events]])
        planted_secrets.search(planted_secrets.Place.ANSWER, shown, message.key)


async def problem(response: aiohttp.ClientResponse) -> Told:
    """Read a refusal; it is well formed where it is a problem document that says when to retry."""
    text = await response.text()
    planted_secrets.search(
        planted_secrets.Place.REFUSAL, f"{response.raw_headers}\n{text}", str(response.url)
    )
    try:
        body: dict[str, Any] = json.loads(text)
    except ValueError:
        return Told(response.status, text[:40], is_well_formed=False)
    is_problem = response.content_type == "application/problem+json" and "request_id" in body
    may_retry = response.status not in {429, 503} or "Retry-After" in response.headers
    return Told(response.status, body.get("code", ""), is_well_formed=is_problem and may_retry)


async def read_events(lines: AsyncIterable[bytes]) -> AsyncGenerator[Event]:
    """Yield events as they come; one that is cut off is dropped, as a browser does."""
    fields: dict[str, str] = {}
    async for raw in lines:
        line = raw.decode().rstrip("\n")
        if not line:
            if "data" in fields:
                number = int(fields["id"]) if "id" in fields else None
                yield Event(number, fields["event"], json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def last_attempt(events: list[Event]) -> list[Event]:
    """Return the events since the turn was last begun."""
    begun = [index for index, event in enumerate(events) if event.type == "turn.in_progress"]
    return events[begun[-1] :] if begun else events


def _has_ended(message: Message) -> bool:
    return bool(message.events) and message.events[-1].type in TERMINAL

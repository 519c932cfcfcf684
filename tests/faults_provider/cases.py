"""One turn against a provider that fails in one way, and all that can be seen of it afterwards."""

import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import anyio
import httpx2
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from app.core.config import Settings
from app.core.database import Database
from app.main import create_app
from app.models import Base
from app.services.openai_service import (
    OpenAIChatModel,
    OpenAITranscriber,
    ProviderClient,
    make_speaker,
)
from app.state import Providers, State, build_state
from tests.support import planted_secrets
from tests.support.application import AUDIO, IsolatedSettings
from tests.support.planted_secrets import PROVIDER_KEY as KEY
from tests.support.provider import PROVIDER_WORDS, Fault, Provider
from tests.support.provider_faults import Planted
from tests.support.sse import Event, parse

TEXT = "Hello! How can I help you today?"
SILENCES = {
    Fault.STALL_BEFORE_HEADERS,
    Fault.STALL_AFTER_HEADERS,
    Fault.STALL_AT_TOKEN,
    Fault.SLOW_HEADERS,
}
SSE = {"accept": "text/event-stream"}
_LANES = 6
_LONGEST_SECONDS = 90


class Mouth(StrEnum):
    """How the answer leaves the server."""

    JSON = "json"
    EVENTS = "events"
    MP3 = "mp3"
    SPOKEN_EVENTS = "spoken_events"

    @property
    def is_voice(self) -> bool:
        return self in {Mouth.MP3, Mouth.SPOKEN_EVENTS}

    @property
    def is_stream(self) -> bool:
        return self in {Mouth.EVENTS, Mouth.SPOKEN_EVENTS}


_NO_LIMITS: dict[str, Any] = {
    "limit_requests_per_minute": 0,
    "limit_concurrent_turns": 0,
    "limit_upload_minutes_per_day": 0,
    "limit_tokens_per_day": 0,
    "limit_usd_per_day": 0,
}
"""The full form has more turns of one caller than a day allows."""


@dataclass(frozen=True, slots=True)
class Case:
    """`times` is how many requests to `endpoint` suffer the fault: one, or all (`None`)."""

    fault: Fault
    mouth: Mouth
    endpoint: str = "chat"
    times: int | None = None
    at: int = 2
    round: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client, an operator and a thief of the database see of one case."""

    status: int
    headers: dict[str, str]
    problem: dict[str, Any]
    """Empty where the answer is none."""
    events: Sequence[Event]
    turn: dict[str, Any]
    messages: Sequence[dict[str, Any]]
    request_count: int
    """Those that came to the case's endpoint."""
    leaked: Sequence[str]
    """Secrets that are in any answer or any row."""
    is_replayed_alike: bool
    next_answer: str
    next_prompt: Sequence[str]
    """What the provider was told when the conversation went on."""
    seconds: float


def make_app(settings: Settings) -> FastAPI:
    """Build the application, which gets a state for each of its clients."""

    @asynccontextmanager
    async def never_opened(_settings: Settings) -> AsyncGenerator[State]:
        raise AssertionError("the state is the test's")
        yield

    return create_app(settings, never_opened)


@asynccontextmanager
async def client_of(app: FastAPI, state: State) -> AsyncGenerator[httpx2.AsyncClient]:
    """Yield a client that sees what leaves the server, also where the server then raises."""

    async def app_with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict[str, Any](state)}, receive, send)

    transport = httpx2.ASGITransport(
        planted_secrets.watched(app_with_state),
        raise_app_exceptions=False,
        client=("127.0.0.1", 50000),
    )
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@asynccontextmanager
async def served(
    settings: Settings,
    database: Database,
    provider: Provider,
    *,
    patience_seconds: float = 20,
    usage_wait_seconds: float = 5,
    tts_model: str = "tts-test",
) -> AsyncGenerator[State]:
    """Run turns against `provider`, which may be silent for `patience_seconds`."""
    async with (
        ProviderClient(
            provider.base_url,
            KEY,
            first_byte_timeout_seconds=patience_seconds,
            chunk_timeout_seconds=patience_seconds,
        ) as adapter,
        build_state(
            settings,
            database,
            Providers(
                chat_model=OpenAIChatModel(
                    adapter, "gpt-6-luna", usage_wait_seconds=usage_wait_seconds
                ),
                transcriber=OpenAITranscriber(adapter, "gpt-transcribe"),
                speaker=make_speaker(adapter, tts_model),
            ),
        ) as state,
    ):
        yield state


@asynccontextmanager
async def own_database(template: Path, folder: Path) -> AsyncGenerator[tuple[Settings, Database]]:
    """Yield an empty SQLite database in `folder`, which is made for it."""
    await anyio.Path(folder).mkdir()
    shutil.copy(template, folder / "agent-platform.db")
    settings = IsolatedSettings(data_dir=folder, **_NO_LIMITS)
    database = Database.from_settings(settings)
    try:
        yield settings, database
    finally:
        with anyio.CancelScope(shield=True):
            await database.dispose()
        planted_secrets.search_sqlite(folder)


def see_all(cases: Iterable[Case], template: Path, folder: Path) -> dict[Case, Seen]:
    """Run every case, several at a time, each on a server of its own."""
    # What waits goes first; then round by round, for some would wear the machine out together.
    waiting = sorted(cases, key=lambda case: (case.fault not in SILENCES, case.round))
    waiting.reverse()
    seen: dict[Case, Seen] = {}
    app = make_app(IsolatedSettings(data_dir=folder))

    async def work(name: str) -> None:
        async with own_database(template, folder / name) as (settings, database):
            with Provider() as provider:
                while waiting:
                    case = waiting.pop()
                    with anyio.fail_after(_LONGEST_SECONDS):
                        async with _server_for(case, settings, database, provider, app) as client:
                            seen[case] = await _converse(case, client, database, provider)

    async def work_all() -> None:
        async with anyio.create_task_group() as group:
            for number in range(_LANES):
                group.start_soon(work, f"lane{number}")

    anyio.run(work_all, backend_options={"use_uvloop": True})
    return seen


@asynccontextmanager
async def _server_for(
    case: Case, settings: Settings, database: Database, provider: Provider, app: FastAPI
) -> AsyncGenerator[httpx2.AsyncClient]:
    """Plant the fault, and yield a client of a server that has met no other."""
    provider.reset()
    if case.endpoint == "chat":
        provider.chat.text = ["x" * 4000] * 5 if case.fault is Fault.ENDLESS else TEXT
    provider.planted.append(
        Planted(case.fault, case.endpoint, case.times, case.at, retry_after_seconds=0.05)
    )
    serving_case = served(
        settings,
        database,
        provider,
        patience_seconds=1.5 if case.fault in SILENCES else 20,
        usage_wait_seconds=0.2 if case.fault is Fault.USAGE_STALLED else 5,
        tts_model="gpt-realtime-test" if case.endpoint == "realtime" else "tts-test",
    )
    async with serving_case as state, client_of(app, state) as client:
        yield client


async def _converse(
    case: Case, client: httpx2.AsyncClient, database: Database, provider: Provider
) -> Seen:
    agent = (await client.post("/agents", json={"name": "Ada"})).json()
    session = (await client.post("/sessions", json={"agent_id": agent["id"]})).json()
    url = f"/sessions/{session['id']}"
    began_at = time.monotonic()
    response = await _say(client, session["id"], case.mouth)
    seconds = time.monotonic() - began_at
    history = await client.get(url)
    turn_url = f"/turns/{history.json()['messages'][1]['turn_id']}"
    turn = await client.get(turn_url)
    replayed = await client.get(f"{turn_url}/events")
    request_count = len(provider.to(case.endpoint))
    rows = _everything_stored(database)
    said = [f"{response.headers} {response.text}", turn.text, replayed.text, history.text, rows]
    secrets = (KEY, "sk-", PROVIDER_WORDS, f"127.0.0.1:{provider.port}")
    kind = response.headers.get("content-type", "")
    provider.reset()
    next_answer = await client.post(
        "/messages/text", json={"session_id": session["id"], "content": "And now?"}
    )
    next_prompt = [line["content"] for line in provider.to("chat")[-1].body["messages"]]
    await client.delete(url)  # the next case finds nothing
    return Seen(
        status=response.status_code,
        headers=dict(response.headers),
        problem=response.json() if kind.startswith("application/problem") else {},
        events=parse(replayed.text.splitlines()),
        turn=turn.json(),
        messages=history.json()["messages"],
        request_count=request_count,
        leaked=[secret for secret in secrets if any(secret in text for text in said)],
        is_replayed_alike=not case.mouth.is_stream or response.text == replayed.text,
        next_answer=next_answer.json().get("content", next_answer.text),
        next_prompt=next_prompt,
        seconds=seconds,
    )


async def _say(client: httpx2.AsyncClient, session_id: str, mouth: Mouth) -> httpx2.Response:
    headers = SSE if mouth.is_stream else {}
    if mouth.is_voice:
        sound = await anyio.Path(AUDIO / "anna_01.wav").read_bytes()
        form = {"session_id": session_id}
        files = {"audio": ("question.wav", sound)}
        return await client.post("/messages/voice", data=form, files=files, headers=headers)
    body = {"session_id": session_id, "content": "Hi"}
    return await client.post("/messages/text", json=body, headers=headers)


def _everything_stored(database: Database) -> str:
    assert database.url.sqlite_path
    with closing(sqlite3.connect(database.url.sqlite_path)) as connection:
        rows = [
            repr(row)
            for table in Base.metadata.sorted_tables
            for row in connection.execute(f'SELECT * FROM "{table.name}"')  # noqa: S608  # ours
        ]
    return "\n".join(rows)

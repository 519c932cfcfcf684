"""pipecat and LiveKit's plugin, unchanged but for the URL, in an environment of their own."""

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from tests.live.test_real_clients import HEARD, SAID, provider, server, shared_provider
from tests.support.generators import python_live_clients
from tests.support.planted_secrets import ADMIN_KEY, PROVIDER_KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

__all__ = ["provider", "server", "shared_provider"]

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]  # packages are downloaded once

PROGRAMS = Path(__file__).parent / "programs"
LONG = " ".join(f"This is sentence number {number} of many." for number in range(1, 20))
WEATHER = ("weather", '{"city": "Bern"}')


def answer(messages: Sequence[dict[str, Any]]) -> str:
    asked = [str(line["content"]) for line in messages if line["role"] == "user"]
    return LONG if "everything" in asked[-1] else SAID


@pytest.fixture
def speech(tmp_path: Path, spoken: bytes) -> Path:
    path = tmp_path / "speech.pcm"
    path.write_bytes(spoken)
    return path


@asynccontextmanager
async def program(name: str, *arguments: str) -> AsyncGenerator[tuple[Process, Callable[[], Any]]]:
    """Run a program; the function reads its output to the next line."""
    command = [str(await anyio.to_thread.run_sync(python_live_clients)), str(PROGRAMS / name)]
    rest = ""
    async with await anyio.open_process([*command, *arguments], stdout=PIPE, stderr=PIPE) as ran:
        assert ran.stdout is not None
        stream = TextReceiveStream(ran.stdout)

        async def next_line() -> str:
            nonlocal rest
            while "\n" not in rest:
                try:
                    rest += await stream.receive()
                except anyio.EndOfStream:
                    assert ran.stderr is not None
                    told = b"".join([piece async for piece in ran.stderr]).decode()
                    raise AssertionError(told) from None
            line, _, rest = rest.partition("\n")
            return line

        yield ran, next_line


async def test_pipecat_writes_speaks_interrupts_calls_its_tool_and_is_told_of_errors(
    server: ServerProcess, provider: Provider, speech: Path
) -> None:
    provider.chat.calls = [WEATHER]
    async with program("pipecat_client.py", f"{server.url}/v1", ADMIN_KEY, str(speech)) as run:
        found = json.loads(await run[1]())

    assert found["errors"] == []
    assert found["written"]["text"] == found["spoken"]["text"] == SAID
    assert found["written"]["seconds"] > 1
    assert found["spoken"]["seconds"] > 1
    assert found["transcripts"] == [HEARD]
    assert found["cities"] == ["Bern", "Bern"]
    told = provider.to("chat")[-1].body["messages"]
    heard = [line["content"] for line in told if line["role"] == "assistant" and line["content"]]
    assert SAID.startswith(heard[0])
    assert heard[0] != SAID  # it was interrupted while it was played


async def test_livekit_writes_speaks_interrupts_calls_its_tool_and_is_told_of_errors(
    server: ServerProcess, provider: Provider, speech: Path
) -> None:
    provider.chat.text, provider.chat.calls = answer, [WEATHER]
    async with program("livekit_client.py", f"{server.url}/v1", ADMIN_KEY, str(speech)) as run:
        found = json.loads(await run[1]())

    assert found["errors"] == []
    assert found["refused"] == 1
    assert found["written"]["text"] == found["spoken"]["text"] == found["after"]["text"] == SAID
    assert min(found[each]["seconds"] for each in ("written", "spoken", "after")) > 1
    assert 1 < found["cut"]["seconds"] < len(LONG) * 0.05
    assert LONG.startswith(found["cut"]["text"])
    assert found["transcripts"] == [HEARD, HEARD]
    assert [call["name"] for call in found["calls"]] == ["weather"]
    assert found["told"] == SAID
    told = provider.to("chat")[-1].body["messages"]
    cut = next(m["content"] for m in told if m["role"] == "assistant" and m["content"] in LONG)
    assert 10 < len(cut) < 30  # it said that one second was heard: twenty characters


async def test_livekit_goes_on_behind_a_killed_server_and_its_answered_history_is_stored_once(
    provider: Provider, tmp_path: Path, speech: Path
) -> None:
    settings = {
        "OPENAI_API_KEY": PROVIDER_KEY,
        "OPENAI_BASE_URL": provider.base_url,
        "TTS_MODEL": "tts-test",
    }
    with ServerProcess(tmp_path, **settings) as server:
        with server.client() as client:
            agent = client.post("/agents", json={"name": "Ada"}).json()["id"]
            session = client.post("/sessions", json={"agent_id": agent}).json()["id"]
        url = f"{server.url}/v1/realtime?session_id={session}"
        async with program("livekit_client.py", url, ADMIN_KEY, str(speech), "killed") as run:
            assert await run[1]() == "answering"
            server.kill()
            await anyio.to_thread.run_sync(server.start)
            found = json.loads(await run[1]())
        with server.client() as client:
            history = client.get(f"/sessions/{session}").json()["messages"]

    assert found == {"first": SAID, "again": SAID}
    assert [message["content"] for message in history] == [
        "Remember the number seven.", SAID, "Hi.", SAID, "Hi.\nStill there?", SAID,
    ]  # fmt: skip  # it asks again what it was not answered

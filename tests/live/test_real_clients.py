"""Clients of OpenAI's Realtime API, unchanged but for the URL, against a real server."""

import base64
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from tests.live.conftest import silence
from tests.support.certificates import make_certificate
from tests.support.generators import installed_node_modules, node
from tests.support.planted_secrets import ADMIN_KEY, PROVIDER_KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]  # packages are downloaded once

FOLDER = Path(__file__).parent
HEARD = "What is the weather like today?"
SAID = "Hello! How can I help you today?"
SECONDS = 60
"""Only ends a test that fails."""


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(shared_provider: Provider) -> Provider:
    shared_provider.reset()
    return shared_provider


@pytest.fixture(scope="module")
def server(
    shared_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = ServerProcess(
        tmp_path_factory.mktemp("server"),
        OPENAI_API_KEY=PROVIDER_KEY,
        OPENAI_BASE_URL=shared_provider.base_url,
        TTS_MODEL="tts-test",
    )
    with server:
        with server.client() as client:
            made = client.post("/agents", json={"name": "Ada", "system_prompt": "You are Ada."})
            assert made.status_code == 201
        yield server


@pytest.fixture
async def python_sdk(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=ADMIN_KEY, base_url=f"{server.url}/v1") as client:
        yield client


async def receive_until(line: AsyncRealtimeConnection, kind: str, seen: list[Any]) -> Any:  # noqa: ANN401  # a union of all
    with anyio.fail_after(SECONDS):
        while True:
            event = await line.recv()
            seen.append(event)
            if event.type == kind:
                return event


async def ask(line: AsyncRealtimeConnection, text: str) -> list[Any]:
    """Ask in text, and return all events up to the end of the answer."""
    seen: list[Any] = []
    content: Any = [{"type": "input_text", "text": text}]
    await line.conversation.item.create(
        item={"type": "message", "role": "user", "content": content}
    )
    await line.response.create()
    await receive_until(line, "response.done", seen)
    return seen


async def speak(line: AsyncRealtimeConnection, pcm: bytes) -> None:
    for start in range(0, len(pcm), 4800):
        audio = base64.b64encode(pcm[start : start + 4800]).decode()
        await line.input_audio_buffer.append(audio=audio)


async def test_python_sdk_writes_speaks_and_is_told_of_errors(
    python_sdk: openai.AsyncOpenAI, provider: Provider, spoken: bytes
) -> None:
    async with python_sdk.realtime.connect(model="agent-ada") as line:
        written = await ask(line, "Hi.")
        heard: list[Any] = []
        await speak(line, spoken + silence(1500))
        done = await receive_until(line, "response.done", heard)
        await line.response.cancel()
        error = await receive_until(line, "error", heard)

    sound = [each for each in written if each.type == "response.output_audio.delta"]
    assert sum(len(base64.b64decode(each.delta)) for each in sound) > 24_000
    (item,) = written[-1].response.output
    assert item.content[0].transcript == SAID
    transcripts = [each.transcript for each in heard if each.type.endswith("ion.completed")]
    assert transcripts == [HEARD]
    assert done.response.status == "completed"
    assert error.error.code == "response_cancel_not_active"
    assert len(provider.to("transcription")) == 1


async def test_python_sdk_is_refused_with_its_own_errors(server: ServerProcess) -> None:
    client = openai.AsyncOpenAI(api_key="ap_wrong", base_url=f"{server.url}/v1")
    async with client:
        with pytest.raises(Exception, match="401"):  # of its WebSocket library
            async with client.realtime.connect(model="agent-ada"):
                pass


@pytest.mark.parametrize(
    ("query", "headers"), [("a" * 20_000, ""), ("a", "x: y\r\n" * 200)], ids=["query", "headers"]
)
async def test_upgrade_that_no_websocket_reads_is_answered(
    server: ServerProcess, query: str, headers: str
) -> None:
    request = (
        f"GET /v1/realtime?model={query} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send(request.encode())
        with anyio.fail_after(SECONDS):
            answer = await stream.receive()

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_line_goes_on_behind_a_killed_server_with_what_was_answered_meanwhile(
    provider: Provider, tmp_path: Path
) -> None:
    settings = {
        "OPENAI_API_KEY": PROVIDER_KEY,
        "OPENAI_BASE_URL": provider.base_url,
        "TTS_MODEL": "tts-test",
    }
    provider.chat.token_delay_seconds = 60
    with ServerProcess(tmp_path, **settings) as server:
        client = openai.AsyncOpenAI(api_key=ADMIN_KEY, base_url=f"{server.url}/v1")
        async with client:
            seen: list[Any] = []
            async with client.realtime.connect(model="gpt-realtime") as line:
                created = await receive_until(line, "session.created", seen)
                content: Any = [{"type": "input_text", "text": "Hi."}]
                await line.conversation.item.create(
                    item={"type": "message", "role": "user", "content": content}
                )
                await line.response.create()
                await receive_until(line, "response.created", seen)
                server.kill()
            provider.chat.token_delay_seconds = 0
            await anyio.to_thread.run_sync(server.start)
            question = next(e.item.id for e in seen if e.type == "conversation.item.added")
            session = created.session.id.removeprefix("sess_")
            assert await anyio.to_thread.run_sync(_answer_of, server, session) == SAID
            query = {"session_id": session, "after": question}
            async with client.realtime.connect(extra_query=query) as line:
                missed: list[Any] = []
                item = (await receive_until(line, "conversation.item.done", missed)).item
                again = await ask(line, "Still there?")

    assert item.content[0].transcript == SAID
    assert again[-1].response.status == "completed"


def _answer_of(server: ServerProcess, session: str) -> str:
    """Wait until the session's answer is stored, and return it."""
    with server.client() as client:
        turns = client.get("/turns", params={"session_id": session}).json()
        turn = turns[0]["id"]
        with client.stream("GET", f"/turns/{turn}/events") as events:
            for line in events.iter_lines():
                if line.startswith("event: turn.completed"):
                    break
        return client.get(f"/sessions/{session}").json()["messages"][-1]["content"]


async def test_agents_sdk_calls_its_tool_and_is_interrupted(
    server: ServerProcess, provider: Provider, spoken: bytes
) -> None:
    from agents import function_tool
    from agents.realtime import RealtimeAgent, RealtimeRunner

    cities: list[str] = []

    @function_tool
    def weather(city: str) -> str:
        """Tell the weather."""
        cities.append(city)
        return "Sunny."

    provider.chat.calls = [("weather", '{"city": "Bern"}')]
    agent = RealtimeAgent(name="Ada", instructions="Be brief.", tools=[weather])
    runner = RealtimeRunner(agent)
    url = f"{server.url.replace('http', 'ws')}/v1/realtime?model=agent-ada"
    seen: list[str] = []
    async with await runner.run(model_config={"api_key": ADMIN_KEY, "url": url}) as session:
        await session.send_message("How is the weather?")
        with anyio.fail_after(SECONDS):
            async for event in session:
                seen.append(event.type)
                assert event.type != "error"
                if seen.count("audio_end") == 1 and event.type == "audio_end":
                    await session.send_audio(spoken + silence(1500))
                if seen.count("audio_end") == 2:
                    break

    assert cities == ["Bern", "Bern"]
    assert "audio_interrupted" in seen
    told = provider.to("chat")[-1].body["messages"]
    heard = [line["content"] for line in told if line["role"] == "assistant" and line["content"]]
    assert SAID.startswith("".join(heard))


async def test_node_sdk_and_its_agents_write_speak_call_tools_and_are_interrupted(
    server: ServerProcess, provider: Provider, tmp_path: Path, spoken: bytes
) -> None:
    provider.chat.calls = [("weather", '{"city": "Bern"}')]
    shutil.copy(FOLDER / "scenarios.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed_node_modules(FOLDER / "tools", "realtime"))
    (tmp_path / "sound.pcm").write_bytes(spoken)
    certificate = str(make_certificate(tmp_path / "server.pem"))
    command = [node(), "scenarios.mjs", server.url, ADMIN_KEY, "sound.pcm", certificate]
    environment = os.environ | {"NODE_EXTRA_CA_CERTS": certificate}

    ran = await anyio.run_process(command, cwd=tmp_path, env=environment, check=False)

    assert ran.returncode == 0, ran.stderr.decode()
    assert json.loads(ran.stdout) == {
        "sdk": {
            "status": ["completed", "completed"],
            "bytes": True,
            "transcripts": [HEARD],
            "error": "response_cancel_not_active",
        },
        "agents": {
            "cities": ["Bern", "Bern"],
            "errors": [],
            "roles": ["user", "function_call", "assistant"] * 2,
        },
    }

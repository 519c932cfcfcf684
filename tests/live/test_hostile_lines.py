"""What no client should send: it is answered with an error, and the line goes on."""

import base64

import anyio
import httpx2
import orjson
import pytest

from tests.live.conftest import OpenLine, ask, configure, send_message
from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio

ONE_BYTE = base64.b64encode(b"A").decode()


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu", "audio/pcma"])
async def test_sound_may_come_in_halves_of_samples_and_empty(
    open_line: OpenLine, kind: str
) -> None:
    async with open_line() as line:
        await configure(line, audio={"input": {"format": {"type": kind}}})
        for audio in ("", ONE_BYTE, "", ONE_BYTE, ONE_BYTE):
            await line.send("input_audio_buffer.append", audio=audio)
        response = await ask(line, "Hi.")

    assert response["status"] == "completed"
    assert "error" not in line.types


@pytest.mark.parametrize("levels", [101, 500, 1_100, 100_000])
@pytest.mark.parametrize(
    "event",
    [
        '{"type":"session.update","session":{"tools":[NESTED]}}',
        '{"type":"response.create","response":{"metadata":NESTED}}',
        '{"type":"session.update","session":{"audio":{"input":{"transcription":NESTED}}}}',
        '{"type":"conversation.item.create","item":NESTED}',
    ],
)
async def test_json_that_is_too_deep_is_refused(
    open_line: OpenLine, event: str, levels: int
) -> None:
    async with open_line() as line:
        await line.send_text(event.replace("NESTED", nested(levels)))
        refused = await line.until("error")
        response = await ask(line, "Hi.")

    assert refused["error"]["code"] in {"invalid_json", "invalid_value"}
    assert response["status"] == "completed"


async def test_settings_have_a_size_that_is_read_quickly(open_line: OpenLine) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "title": "x" * 3000}}
    async with open_line() as line:
        await line.send("session.update", session={"tools": [tool] * 100})
        refused = await line.until("error")
        session = await configure(line, tools=[tool])

    assert refused["error"]["code"] == "invalid_value"
    assert len(session["tools"]) == 1


async def test_arguments_and_outputs_of_tools_are_text_however_deep(
    open_line: OpenLine, chat_model: FakeChatModel
) -> None:
    async with open_line() as line:
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": nested(50_000)}
        await line.send("conversation.item.create", item=call)
        output = {"type": "function_call_output", "call_id": "c", "output": nested(50_000)}
        await line.send("conversation.item.create", item=output)
        await line.until("conversation.item.done", 2)
        await send_message(line, "It is known.", role="assistant")
        response = await ask(line, "Hi.")

    assert response["status"] == "completed"
    assert chat_model.prompts[-1][-1] == ("user", "Hi.")


async def test_history_that_is_brought_again_is_stored_once(
    open_line: OpenLine, client: httpx2.AsyncClient
) -> None:
    async with open_line() as line:
        session = (await line.until("session.created"))["session"]["id"].removeprefix("sess_")
        first = await ask(line, "First.")
    (answer,) = first["output"]
    words = answer["content"][0]["transcript"]

    async with open_line(f"session_id={session}") as line:
        await send_message(line, "First.", id="msg_of_the_client")
        await send_message(line, words, role="assistant", id=answer["id"])
        await ask(line, "Second.")

    history = (await client.get(f"/sessions/{session}")).json()["messages"]
    assert [each["content"] for each in history] == ["First.", words, "Second.", words]


async def test_client_that_never_pauses_lets_others_have_their_turn(
    open_line: OpenLine, client: httpx2.AsyncClient
) -> None:
    """Each event is served alone: between two of them, others are."""
    served = before = 0
    event = orjson.dumps({"type": "conversation.item.retrieve", "item_id": "x"}).decode()

    async def count() -> None:
        nonlocal served
        while True:
            await anyio.lowlevel.checkpoint()
            served += 1

    async with open_line() as line, anyio.create_task_group() as tasks:
        for _ in range(900):
            await line.send_text(event)
        tasks.start_soon(count)
        before = served
        await line.until("error", 900)
        tasks.cancel_scope.cancel()

    assert served - before > 300
    assert (await client.get("/agents")).status_code == 200

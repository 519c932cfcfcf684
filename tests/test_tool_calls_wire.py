"""Tool calls on the wire of chat completions: what is sent, and the shapes that come back."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest

from app.services.openai_service import OpenAIChatModel, ProviderClient
from app.services.openai_service.chat_reply import ReplyReader
from app.services.ports import (
    ChatFinished,
    ChatRequest,
    FinishReason,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
)
from app.services.prompt_lines import (
    TOOL_ROLE,
    PromptAnswer,
    PromptCall,
    PromptMessage,
    PromptResult,
)
from app.services.provider_http.failures import SettingNames
from tests.support.provider import Provider

TOOL = ToolDefinition("add", "Adds numbers.", {"type": "object", "required": ["a"]})
QUESTION = PromptMessage("user", "1 + 1?")


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
async def model(provider: Provider) -> AsyncIterator[OpenAIChatModel]:
    async with ProviderClient(provider.base_url, "sk-test") as client:
        yield OpenAIChatModel(client, "m")


def joined(deltas: list[ToolCallDelta]) -> list[tuple[str, str, str]]:
    """Return id, name and arguments of each call, as the turn engine joins them."""
    calls: dict[int, tuple[str, str, str]] = {}
    for delta in deltas:
        call_id, name, arguments = calls.get(delta.index, (delta.call_id, delta.name, ""))
        calls[delta.index] = (call_id, name, arguments + delta.arguments)
    return [calls[index] for index in sorted(calls)]


@pytest.mark.anyio
async def test_tools_calls_and_results_are_sent_as_openai_takes_them(
    provider: Provider, model: OpenAIChatModel
) -> None:
    provider.chat.calls = [("add", '{"a": 1, "b": 1}'), ("add", "{}")]
    first = ChatRequest([QUESTION], tools=[TOOL])
    items = [item async for item in model.stream(first)]

    calls = joined([item for item in items if isinstance(item, ToolCallDelta)])
    assert calls == [("call_0", "add", '{"a": 1, "b": 1}'), ("call_1", "add", "{}")]
    assert isinstance(items[-1], ChatFinished)
    assert items[-1].finish_reason is FinishReason.TOOL_CALLS
    body = provider.to("chat")[0].body
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "add",
                "description": "Adds numbers.",
                "parameters": {"type": "object", "required": ["a"]},
            },
        }
    ]
    assert "tool_choice" not in body

    answer = PromptAnswer("assistant", "", (PromptCall("call_0", "add", '{"a": 1, "b": 1}'),))
    result = PromptResult(TOOL_ROLE, "2", "call_0")
    second = ChatRequest([QUESTION, answer, result], tools=[TOOL], may_call_tools=False)
    items = [item async for item in model.stream(second)]

    assert any(isinstance(item, TextDelta) for item in items)
    body = provider.to("chat")[1].body
    assert body["tool_choice"] == "none"
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_0",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 1, "b": 1}'},
                }
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "call_0"},
    ]


@pytest.mark.anyio
async def test_request_without_tools_is_what_it_was(
    provider: Provider, model: OpenAIChatModel
) -> None:
    async for _ in model.stream(ChatRequest([QUESTION])):
        pass
    body = provider.to("chat")[0].body
    assert body["messages"] == [{"role": "user", "content": "1 + 1?"}]
    assert set(body) <= {"model", "messages", "stream", "stream_options"}


def call(name: str | None = None, arguments: object = None, **more: object) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"function": {key: value for key, value in function.items() if value is not None}} | more


QUIRKS: dict[str, tuple[list[Any], list[tuple[str | None, str, str]]]] = {
    "as OpenAI streams": (
        [
            [call("f", "", index=0, id="a")],
            [call(arguments='{"x"', index=0)],
            [call(arguments=":1}", index=0), call("g", "{}", index=1, id="b")],
        ],
        [("a", "f", '{"x":1}'), ("b", "g", "{}")],
    ),
    "whole, without an index": (
        [[call("f", "{}", id="a"), call("g", "{}", id="b")]],
        [("a", "f", "{}"), ("b", "g", "{}")],
    ),
    "pieces without an index": (
        [[call("f", '{"x"', id="a")], [call(arguments=":1}")]],
        [("a", "f", '{"x":1}')],
    ),
    "every index is 0": (
        [[call("f", "{}", index=0, id="a")], [call("g", "{}", index=0, id="b")]],
        [("a", "f", "{}"), ("b", "g", "{}")],
    ),
    "the id is repeated in every piece": (
        [[call("f", '{"x"', index=0, id="a")], [call(arguments=":1}", index=0, id="a")]],
        [("a", "f", '{"x":1}')],
    ),
    "two calls with one id": (
        [[call("f", "{}", index=0, id="a"), call("g", "{}", index=1, id="a")]],
        [("a", "f", "{}"), (None, "g", "{}")],
    ),
    "no ids": (
        [[call("f", "{}", index=0)], [call("g", "{}", index=1)]],
        [(None, "f", "{}"), (None, "g", "{}")],
    ),
    "arguments are an object": (
        [[call("f", {"x": [1, "é"]}, index=0, id="a")]],
        [("a", "f", '{"x":[1,"é"]}')],
    ),
    "no arguments": ([[call("f", index=0, id="a")]], [("a", "f", "")]),
    "one call that is no list": ([call("f", "{}", id="a")], [("a", "f", "{}")]),
    "characters that no database stores": (
        [[call("f", '"\x00"', index=0, id="a")]],
        [("a", "f", '"\ufffd"')],
    ),
}


@pytest.mark.parametrize(
    ("name", "streams"),
    [(name, True) for name in QUIRKS]
    + [(name, False) for name, (chunks, _) in QUIRKS.items() if len(chunks) == 1],
)
def test_calls_of_compatible_servers_are_read(name: str, *, streams: bool) -> None:
    chunks, expected = QUIRKS[name]
    key = "delta" if streams else "message"
    frames: list[dict[str, Any]] = [{"choices": [{key: {"tool_calls": calls}}]} for calls in chunks]
    finish: dict[str, Any] = {"choices": [{key: {}, "finish_reason": "stop"}]}
    if streams:
        body = b"".join(b"data: " + orjson.dumps(frame) + b"\n\n" for frame in [*frames, finish])
    else:
        frames[0]["choices"][0]["finish_reason"] = "stop"
        body = orjson.dumps(frames[0])
    reader = ReplyReader("m", SettingNames("CHAT_MODEL"))
    deltas = [delta for piece in (body, b"") for delta in reader.feed(piece)]

    read = joined([delta for delta in deltas if isinstance(delta, ToolCallDelta)])
    assert [(name, arguments) for _, name, arguments in read] == [
        (name, arguments) for _, name, arguments in expected
    ]
    for (call_id, _, _), (wanted, _, _) in zip(read, expected, strict=True):
        assert call_id == wanted if wanted else call_id.startswith("call_")
    assert len({call_id for call_id, _, _ in read}) == len(read)
    assert reader.finish().finish_reason is FinishReason.TOOL_CALLS

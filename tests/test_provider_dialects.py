"""What compatible servers send and refuse in their own ways, over real HTTP."""

import gzip
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import orjson
import pytest

from app.services.openai_service import OpenAIChatModel, OpenAITranscriber, ProviderClient
from app.services.ports import (
    AudioFormat,
    ChatFinished,
    ChatRequest,
    FinishReason,
    ProviderError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnauthorized,
    ReasoningDelta,
    Recording,
    TextDelta,
    Transcript,
    UpstreamIncomplete,
)
from app.services.prompt_lines import PromptMessage
from tests.support.provider import Provider
from tests.support.provider_faults import Reply, event

pytestmark = pytest.mark.anyio

HELLO = ChatRequest([PromptMessage("user", "Hello")], max_output_tokens=5)
RECORDING = Recording(b"RIFF" + bytes(2000), AudioFormat.WAV, 0.1)
DONE = b"data: [DONE]\n\n"
EVENTS = "text/event-stream"


@pytest.fixture(scope="module")
def running_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    running_provider.reset()
    return running_provider


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[ProviderClient]:
    async with ProviderClient(provider.base_url, "key") as client:
        yield client


@pytest.fixture
def chat_model(client: ProviderClient) -> OpenAIChatModel:
    return OpenAIChatModel(client, "local", usage_wait_seconds=0.3)


def chunk(delta: object, reason: object = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return event({"model": "local", "choices": [choice], **fields})


def text(words: object, reason: object = None, **fields: Any) -> bytes:
    return chunk({"content": words}, reason, **fields)


STOP = chunk({}, "stop")


async def answer_of(
    model: OpenAIChatModel, request: ChatRequest = HELLO
) -> tuple[str, str, ChatFinished]:
    """Return answer, reasoning and finish."""
    with anyio.fail_after(60):
        items = [item async for item in model.stream(request)]
    *deltas, finished = items
    assert isinstance(finished, ChatFinished)
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)),
        "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)),
        finished,
    )


async def read(
    provider: Provider, model: OpenAIChatModel, *pieces: bytes, label: str = EVENTS
) -> tuple[str, str, ChatFinished]:
    provider.raw["chat"] = Reply(label, list(pieces))
    return await answer_of(model)


# Where an answer ends


USAGE = {"prompt_tokens": 3, "completion_tokens": 4}


@pytest.mark.parametrize(
    ("pieces", "expected", "reason"),
    [
        pytest.param(
            [text(f"{word} ", "stop", usage=USAGE) for word in ("one", "two", "three")],
            "one two three ",
            FinishReason.STOP,
            id="finish and usage in every chunk",
        ),
        pytest.param(
            [text("one ", "stop"), text("two ", "stop"), text("three", "length")],
            "one two three",
            FinishReason.LENGTH,
            id="last finish counts",
        ),
        pytest.param(
            [text("one "), STOP, text("two "), text("three")],
            "one two three",
            FinishReason.STOP,
            id="text after the finish",
        ),
        pytest.param(
            [text("one"), STOP, chunk({}, "length")],
            "one",
            FinishReason.STOP,
            id="second finish without text",
        ),
        pytest.param(
            [text("one"), chunk({}, ""), chunk({}, "null"), chunk(None, None), STOP],
            "one",
            FinishReason.STOP,
            id="reasons that are none",
        ),
    ],
)
@pytest.mark.parametrize("end", [DONE, b""], ids=["done", "end of the stream"])
async def test_answer_is_read_to_the_end_of_its_stream(
    pieces: list[bytes],
    expected: str,
    reason: FinishReason,
    end: bytes,
    provider: Provider,
    chat_model: OpenAIChatModel,
) -> None:
    answer, _, finished = await read(provider, chat_model, *pieces, end)

    assert (answer, finished.finish_reason) == (expected, reason)


async def test_slow_answer_with_a_finish_in_every_chunk_is_waited_for(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    pieces = [text(f"{number} ", "stop", usage=USAGE) for number in range(4)]
    provider.raw["chat"] = Reply(EVENTS, [*pieces, DONE], piece_delay_seconds=0.4)

    answer, _, finished = await answer_of(chat_model)

    assert answer == "0 1 2 3 "
    assert finished.completion_tokens == 4


async def test_answer_with_a_finish_in_every_chunk_that_breaks_off_is_no_answer(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.raw["chat"] = Reply(
        EVENTS, [text("one ", "stop"), text("two ", "stop")], after="reset"
    )

    with pytest.raises(UpstreamIncomplete):
        await answer_of(chat_model)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("max_tokens", FinishReason.LENGTH),
        ("MAX_TOKENS", FinishReason.LENGTH),
        ("model_length", FinishReason.LENGTH),
        ("eos_token", FinishReason.STOP),
        ("end_turn", FinishReason.STOP),
        ("SAFETY", FinishReason.CONTENT_FILTER),
    ],
)
async def test_finish_reasons_of_other_apis_are_known(
    said: str, meant: FinishReason, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    _, _, finished = await read(provider, chat_model, text("one"), chunk({}, said), DONE)

    assert finished.finish_reason is meant


@pytest.mark.parametrize(
    "reason", ["error", "abort", "insufficient_system_resource", "banana", 7, ["stop"], {"a": 1}]
)
@pytest.mark.parametrize("before", [[], [STOP]], ids=["", "after a stop"])
async def test_error_or_unknown_finish_reason_is_a_failure(
    reason: object, before: list[bytes], provider: Provider, chat_model: OpenAIChatModel
) -> None:
    with pytest.raises(UpstreamIncomplete):
        await read(provider, chat_model, text("one"), *before, chunk({}, reason), DONE)


async def test_model_that_thinks_after_its_first_chunk_has_the_time_for_the_first_byte(
    provider: Provider,
) -> None:
    role = chunk({"role": "assistant", "content": ""})
    provider.raw["chat"] = Reply(EVENTS, [role, text("Hi"), STOP, DONE], piece_delay_seconds=0.6)
    async with ProviderClient(provider.base_url, "key", chunk_timeout_seconds=0.3) as client:
        model = OpenAIChatModel(client, "local")
        with pytest.raises(ProviderTimeout):  # the silence behind the first word is too long
            await answer_of(model)
        provider.raw["chat"] = Reply(EVENTS, [role, text("Hi") + STOP], piece_delay_seconds=0.6)
        assert (await answer_of(model))[0] == "Hi"


# What is in a chunk


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param(
            [text([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "ab", id="parts"
        ),
        pytest.param([text([{"type": "output_text", "text": "a"}, "b"])], "ab", id="mixed parts"),
        pytest.param([text({"type": "text", "text": "ab"})], "ab", id="one part"),
        pytest.param(
            [text([]), text([{"type": "text", "text": None}]), text("ab")], "ab", id="empty parts"
        ),
        pytest.param([b"data:\n\n", b"data: \n\n", b"data\n\n", text("ab")], "ab", id="bare data"),
        pytest.param(
            [event({"type": "ping"}), event({"choices": None}), event(None), text("ab")],
            "ab",
            id="no choices",
        ),
        pytest.param(
            [b": hi\n\n", b"event: ping\n\n", b"id: 1\n\n", text("ab")], "ab", id="fields"
        ),
        pytest.param([event({"choices": [{"message": {"content": "ab"}}]})], "ab", id="message"),
    ],
)
async def test_text_is_found_wherever_servers_put_it(
    pieces: list[bytes], expected: str, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    answer, _, finished = await read(provider, chat_model, *pieces, STOP, DONE)

    assert (answer, finished.finish_reason) == (expected, FinishReason.STOP)


@pytest.mark.parametrize("reason", ["stop", "content_filter", "refusal"])
async def test_refusal_is_the_answer_and_marked(
    reason: str, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    words = [{"content": None, "refusal": "I can"}, {"refusal": "not."}]
    pieces = [*map(chunk, words), chunk({}, reason), DONE]

    answer, _, finished = await read(provider, chat_model, *pieces)

    assert (answer, finished.finish_reason) == ("I cannot.", FinishReason.CONTENT_FILTER)


async def test_refusal_of_an_answer_that_is_not_streamed_is_the_answer(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    body = orjson.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})

    answer, _, finished = await read(provider, chat_model, body, label="application/json")

    assert (answer, finished.finish_reason) == ("No.", FinishReason.CONTENT_FILTER)


@pytest.mark.parametrize("reason", ["tool_calls", "function_call", "stop"])
async def test_tool_calls_are_an_answer_of_their_own_kind(
    reason: str, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    pieces = [chunk({"content": None, "tool_calls": [call]}), chunk({}, reason), DONE]

    answer, _, finished = await read(provider, chat_model, *pieces)

    assert (answer, finished.finish_reason) == ("", FinishReason.TOOL_CALLS)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([r"\ud83d", r"\ude00"], "\U0001f600"),
        ([r"Hi \ud83d", r"\ude00\ud83d", r"\ude01!"], "Hi \U0001f600\U0001f601!"),
        ([r"\ud83d", "", r"\ude00"], "\U0001f600"),
        ([r"\ud83d", "x"], "\ufffdx"),
        ([r"\ude00", r"\ud83d"], "\ufffd\ufffd"),
        ([r"a\ud83d"], "a\ufffd"),
    ],
)
async def test_halves_of_a_character_are_joined_across_chunks(
    written: list[str], expected: str, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    pieces = [text("@").replace(b"@", half.encode()) for half in written]

    answer, _, _ = await read(provider, chat_model, *pieces, STOP, DONE)

    assert answer == expected


# Reasoning


@pytest.mark.parametrize(
    ("words", "answer", "reasoning"),
    [
        ("<think>Secret plan.</think>Paris.", "Paris.", "Secret plan."),
        ("\n<think>\nSecret.\n</think>\n\nParis.", "Paris.", "\nSecret.\n"),
        ("<THINK>a < b</THINK>Paris.", "Paris.", "a < b"),
        ("<thinking>x</thinking>\nParis.", "Paris.", "x"),
        ("<think></think>Paris.", "Paris.", ""),
        ("<thought>x</thought>Paris.", "Paris.", "x"),
        ("<reasoning>x [1] < 2</reasoning>Paris.", "Paris.", "x [1] < 2"),
        ("<seed:think>x</seed:think>\nParis.", "Paris.", "x"),
        ("[THINK]x [/ y[/THINK]Paris.", "Paris.", "x [/ y"),
        ("[THIN] Paris.", "[THIN] Paris.", ""),
        ("[1] says Paris.", "[1] says Paris.", ""),
        ("<think>x</think><think>y</think>Paris.", "Paris.", "xy"),
        ("<think>half a </thi", "", "half a </thi"),
        ("A <think>is a tag</think>.", "A <think>is a tag</think>.", ""),
        ("<thin ice>", "<thin ice>", ""),
        ("  <b>bold</b>", "  <b>bold</b>", ""),
        ("<", "<", ""),
        ("<think>x</think>A <think>y</think>", "A <think>y</think>", "x"),
    ],
)
@pytest.mark.parametrize("length", [1, 3, 1000])
async def test_thinking_at_the_beginning_is_reasoning(
    words: str,
    answer: str,
    reasoning: str,
    length: int,
    provider: Provider,
    chat_model: OpenAIChatModel,
) -> None:
    pieces = [text(words[start : start + length]) for start in range(0, len(words), length)]

    assert (await read(provider, chat_model, *pieces, STOP, DONE))[:2] == (answer, reasoning)


@pytest.mark.parametrize(
    "names", [["reasoning_content"], ["reasoning"], ["reasoning", "reasoning_content"]]
)
async def test_reasoning_beside_the_text_is_reasoning(
    names: list[str], provider: Provider, chat_model: OpenAIChatModel
) -> None:
    pieces = [chunk(dict.fromkeys(names, word)) for word in ("Secret ", "plan.")]

    answer, reasoning, _ = await read(provider, chat_model, *pieces, text("Paris."), STOP, DONE)

    assert (answer, reasoning) == ("Paris.", "Secret plan.")


async def test_parts_of_thought_are_reasoning(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Secret."}]}

    answer, reasoning, _ = await read(
        provider, chat_model, text([thought]), text("Paris."), STOP, DONE
    )

    assert (answer, reasoning) == ("Paris.", "Secret.")


# Labels and codings


WHOLE = orjson.dumps(
    {"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}], "usage": USAGE}
)
STREAM = text("Paris.") + STOP + DONE


@pytest.mark.parametrize(
    ("label", "body"),
    [
        ("application/json", STREAM),
        ("text/html", STREAM),
        ("", b"\xef\xbb\xbf\r\n" + STREAM),
        (EVENTS, WHOLE),
        (EVENTS, b"\n  " + WHOLE + b"\n"),
        ("text/plain", WHOLE),
        ("application/octet-stream", WHOLE),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 7])
async def test_first_bytes_tell_events_from_json(
    label: str, body: bytes, piece_bytes: int, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    pieces = [body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes)]

    answer, _, _ = await read(provider, chat_model, *pieces, label=label)

    assert answer == "Paris."


@pytest.mark.parametrize("label", [EVENTS, "application/json", "text/html"])
async def test_web_page_is_no_answer(
    label: str, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    with pytest.raises(UpstreamIncomplete, match="OPENAI_BASE_URL"):
        await read(provider, chat_model, b"<!doctype html>", b"<p>Hi", label=label)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("none", STREAM),
        ("utf-8", STREAM),
        ("identity", STREAM),
        ("br", STREAM),
        ("", STREAM),
        ("gzip", gzip.compress(STREAM)),
        ("GZIP", gzip.compress(STREAM)),
        ("identity, gzip", gzip.compress(STREAM)),
        ("deflate", zlib.compress(STREAM)),
        ("gzip", gzip.compress(text("Paris.")) + gzip.compress(STOP) + gzip.compress(DONE)),
        ("gzip", gzip.compress(STREAM) + bytes(8)),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1])
async def test_content_codings_are_undone_and_unknown_ones_mean_as_it_is(
    coding: str, body: bytes, piece_bytes: int, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    pieces = [body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes)]
    provider.raw["chat"] = Reply(EVENTS, pieces, headers={"Content-Encoding": coding})

    assert (await answer_of(chat_model))[0] == "Paris."


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "full HTTP"])
async def test_bomb_of_compressed_comments_is_refused_and_holds_nobody_up(
    proxied: bool, provider: Provider
) -> None:
    bomb = gzip.compress((b":" + b" " * 1000 + b"\n") * 200_000, compresslevel=1)  # 200 MB
    provider.raw["chat"] = Reply(EVENTS, [bomb], headers={"Content-Encoding": "gzip"})
    credentials = "user:word@" if proxied else ""  # which the thin client leaves to aiohttp
    url = provider.base_url.replace("//", f"//{credentials}")
    longest = seconds = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began_at = time.thread_time()
            await anyio.lowlevel.checkpoint()
            longest = max(longest, time.thread_time() - began_at)

    async with ProviderClient(url, None) as client, anyio.create_task_group() as group:
        model = OpenAIChatModel(client, "local")
        group.start_soon(watch)
        began_at = time.thread_time()
        with pytest.raises(UpstreamIncomplete):
            await answer_of(model)
        seconds = time.thread_time() - began_at
        group.cancel_scope.cancel()

    assert seconds < 5
    assert longest < 1


# Fields that a server refuses


def refusal(words: str, status: int = 400) -> Reply:
    body = orjson.dumps({"error": {"message": words, "type": "invalid_request_error"}})
    return Reply("application/json", [body], status=status)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("stream_options is not supported", 400),
        ("Unrecognized request argument supplied: stream_options", 400),
        ("[{'type': 'extra_forbidden', 'loc': ['body', 'stream_options']}]", 422),
        ("Extra inputs are not permitted", 422),
        ("unexpected keyword argument 'stream_options'", 500),
    ],
)
async def test_server_that_refuses_stream_options_is_asked_without_from_then_on(
    words: str, status: int, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.refused_fields["stream_options"] = refusal(words, status)

    for _ in range(2):
        answer, _, finished = await answer_of(chat_model)
        assert answer
        assert finished.prompt_tokens is None

    asked = ["stream_options" in request.body for request in provider.to("chat")]
    assert asked == [True, False, False]


@pytest.mark.parametrize(
    "words",
    [
        "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "max_tokens: unknown field",
        "Unknown parameter",
    ],
)
async def test_server_that_refuses_the_limits_name_is_asked_with_the_other(
    words: str, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.refused_fields["max_tokens"] = refusal(words)

    for _ in range(2):
        assert (await answer_of(chat_model))[0]

    assert provider.to("chat")[-1].body["max_completion_tokens"] == 5
    count = len(provider.to("chat"))
    await answer_of(chat_model)
    assert len(provider.to("chat")) == count + 1


async def test_openais_own_name_of_the_limit_gives_way_too(provider: Provider) -> None:
    provider.refused_fields["max_completion_tokens"] = refusal("max_completion_tokens: unknown")
    async with ProviderClient(provider.base_url, "key") as client:
        model = OpenAIChatModel(client, "local")
        provider.refused_fields["max_tokens"] = refusal("Use max_completion_tokens, not max_tokens")
        with pytest.raises(ProviderRejected):  # neither is taken: asked with each, once
            await answer_of(model)
        assert len(provider.to("chat")) == 2
        del provider.refused_fields["max_completion_tokens"]
        assert (await answer_of(model))[0]


async def test_what_one_model_refuses_is_still_asked_of_another(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.refused_fields["stream_options"] = refusal("no stream_options here")
    await answer_of(chat_model)
    provider.refused_fields.clear()

    await answer_of(chat_model, ChatRequest(HELLO.messages, model="other"))

    assert "stream_options" in provider.to("chat")[-1].body


async def test_refusal_of_something_else_is_not_asked_again(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.refused_fields["messages"] = refusal("This model's maximum context is 5 tokens.")

    with pytest.raises(ProviderRejected):
        await answer_of(chat_model)

    assert len(provider.to("chat")) == 1


# What errors say


@pytest.mark.parametrize(
    "refused",
    [
        Reply("application/json", [b"{}"], status=402),
        refusal("Insufficient Balance", 402),
        refusal("insufficient_quota", 429),
        refusal("Your account has insufficient funds", 403),
        refusal("Your credit balance is too low to access the API", 400),
    ],
)
async def test_account_without_credit_is_said_to_have_none(
    refused: Reply, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.raw["chat"] = refused

    with pytest.raises(ProviderUnauthorized, match=r"no credit.*OPENAI_API_KEY"):
        await answer_of(chat_model)


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (401, ["STT_API_KEY", "STT_MODEL"]),
        (402, ["STT_API_KEY"]),
        (404, ["STT_MODEL", "STT_BASE_URL"]),
        (422, ["STT_MODEL"]),
        (302, ["STT_BASE_URL"]),
    ],
)
async def test_error_names_the_settings_that_are_meant(
    status: int, names: list[str], provider: Provider
) -> None:
    provider.raw["transcription"] = Reply("application/json", [b"{}"], status=status)
    async with ProviderClient(
        provider.base_url,
        "key",
        base_url_setting="STT_BASE_URL",
        api_key_setting="STT_API_KEY",
    ) as client:
        with pytest.raises(ProviderError) as caught:
            await OpenAITranscriber(client, "m").transcribe(RECORDING)

    assert all(name in caught.value.detail for name in names)
    assert "OPENAI" not in caught.value.detail


# Transcripts


def words(delta: str) -> bytes:
    return event({"type": "transcript.text.delta", "delta": delta})


TRANSCRIPT = {"type": "transcript.text.done", "text": "What is it?"}


@pytest.mark.parametrize(
    ("label", "body", "heard"),
    [
        pytest.param(
            EVENTS, words("What") + event(TRANSCRIPT).rstrip(b"\n"), ["What"], id="no blank line"
        ),
        pytest.param(
            EVENTS,
            b"data:\n\n" + words("What") + event({"type": "ping"}) + event(TRANSCRIPT),
            ["What"],
            id="keep-alives",
        ),
        pytest.param(
            "application/json", words("What") + event(TRANSCRIPT), ["What"], id="events as JSON"
        ),
        pytest.param(EVENTS, orjson.dumps({"text": "What is it?"}), [], id="JSON as events"),
        pytest.param(EVENTS, event({"text": "What is it?"}), [], id="event without a type"),
        pytest.param(
            EVENTS,
            words("@").replace(b"@", rb"\ud83d")
            + words("@").replace(b"@", rb"\ude00")
            + event(TRANSCRIPT),
            ["\U0001f600"],
            id="halves of a character",
        ),
    ],
)
@pytest.mark.parametrize("listens", [True, False])
async def test_transcript_is_read_however_it_is_sent(
    label: str,
    body: bytes,
    heard: list[str],
    listens: bool,
    provider: Provider,
    client: ProviderClient,
) -> None:
    provider.raw["transcription"] = Reply(label, [body])
    said: list[str] = []
    transcriber = OpenAITranscriber(client, "gpt-transcribe")

    transcript = await transcriber.transcribe(RECORDING, on_words=said.append if listens else None)

    assert transcript == Transcript("What is it?")
    assert said == (heard if listens else [])


@pytest.mark.parametrize("body", [b"<html>", b"", b"  ", b"null", b"[]", b"{}", b"data: {}\n\n"])
async def test_what_is_no_transcript_is_an_error(
    body: bytes, provider: Provider, client: ProviderClient
) -> None:
    provider.raw["transcription"] = Reply("application/json", [body])

    with pytest.raises(UpstreamIncomplete):
        await OpenAITranscriber(client, "gpt-transcribe").transcribe(RECORDING)

"""The adapter against a real HTTP server that speaks OpenAI's wire format, and lies in it."""

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any
from urllib.request import Request, urlopen

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models.chat import Role
from app.services.openai_service import (
    OpenAIChatModel,
    OpenAISpeaker,
    OpenAITranscriber,
    ProviderClient,
)
from app.services.openai_service.chat_reply import ReplyReader
from app.services.openai_service.pcm import CompressedSpeech, PcmReader
from app.services.ports import (
    AudioFormat,
    ChatFinished,
    ChatItem,
    ChatRequest,
    FinishReason,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnauthorized,
    ProviderUnavailable,
    ReasoningDelta,
    Recording,
    TextDelta,
    Transcript,
    UpstreamIncomplete,
)
from app.services.prompt_lines import PromptMessage
from app.services.provider_http.failures import SettingNames
from app.services.provider_http.sse import EventReader
from tests.support.planted_secrets import PROVIDER_KEY as KEY
from tests.support.provider import PROVIDER_WORDS, Fault, Provider
from tests.support.provider_faults import spoil_speech

pytestmark = pytest.mark.anyio

TEXT = "Hello! How can I help you today?"
HELLO = ChatRequest([PromptMessage(Role.USER, "Hello")])
RECORDING = Recording(b"RIFF" + bytes(2000), AudioFormat.WAV, 0.1)

REFUSALS: dict[Fault, type[ProviderError]] = {
    Fault.STATUS_400: ProviderRejected,
    Fault.STATUS_401: ProviderUnauthorized,
    Fault.STATUS_402: ProviderUnauthorized,
    Fault.STATUS_403: ProviderUnauthorized,
    Fault.STATUS_404: ProviderRejected,
    Fault.STATUS_405: ProviderRejected,
    Fault.STATUS_408: ProviderUnavailable,
    Fault.STATUS_409: ProviderUnavailable,
    Fault.STATUS_413: ProviderRejected,
    Fault.STATUS_415: ProviderRejected,
    Fault.STATUS_418: ProviderRejected,
    Fault.STATUS_422: ProviderRejected,
    Fault.STATUS_426: ProviderRejected,
    Fault.STATUS_429: ProviderRateLimited,
    Fault.STATUS_429_SECONDS: ProviderRateLimited,
    Fault.STATUS_429_DATE: ProviderRateLimited,
    Fault.STATUS_429_MS: ProviderRateLimited,
    Fault.STATUS_429_NONSENSE: ProviderRateLimited,
    Fault.STATUS_429_QUOTA: ProviderUnauthorized,
    Fault.STATUS_500: ProviderUnavailable,
    Fault.STATUS_502: ProviderUnavailable,
    Fault.STATUS_503: ProviderUnavailable,
    Fault.STATUS_504: ProviderUnavailable,
    Fault.STATUS_529: ProviderUnavailable,
    Fault.REDIRECT: ProviderRejected,
    Fault.CLOSE_BEFORE_HEADERS: ProviderUnavailable,
    Fault.RESET_BEFORE_HEADERS: ProviderUnavailable,
    Fault.STALL_BEFORE_HEADERS: ProviderTimeout,
    Fault.STALL_AFTER_HEADERS: ProviderTimeout,
    Fault.SLOW_HEADERS: ProviderTimeout,
    Fault.NOT_HTTP: UpstreamIncomplete,
    Fault.EMPTY: UpstreamIncomplete,
    Fault.HTML: UpstreamIncomplete,
    Fault.JSON_ERROR: UpstreamIncomplete,
    Fault.GZIP_GARBAGE: UpstreamIncomplete,
    Fault.CHUNKED_LIE: UpstreamIncomplete,
    Fault.CUT_AT_BYTE: UpstreamIncomplete,
    Fault.ENDLESS: UpstreamIncomplete,
}
"""What every endpoint makes of them."""

CHAT_FAILURES = REFUSALS | {
    Fault.RESET_AT_TOKEN: UpstreamIncomplete,
    Fault.STALL_AT_TOKEN: ProviderTimeout,
    Fault.TRUNCATED_JSON: UpstreamIncomplete,
    Fault.IGNORES_STREAM_NO_FINISH: UpstreamIncomplete,
    Fault.INVALID_JSON_CHUNK: UpstreamIncomplete,
    Fault.ARRAY_CHUNK: UpstreamIncomplete,
    Fault.DEEP_CHUNK: UpstreamIncomplete,
    Fault.CONTENT_NOT_TEXT: UpstreamIncomplete,
    Fault.HUGE_LINE: UpstreamIncomplete,
    Fault.FINISH_ERROR: UpstreamIncomplete,
    Fault.FINISH_UNKNOWN: UpstreamIncomplete,
    Fault.NO_FINISH: UpstreamIncomplete,
    Fault.DONE_WITHOUT_FINISH: UpstreamIncomplete,
    Fault.ERROR_IN_STREAM: UpstreamIncomplete,
    Fault.ERROR_IN_STREAM_RATE_LIMIT: ProviderRateLimited,
    Fault.ERROR_IN_STREAM_OVERLOADED: ProviderUnavailable,
    Fault.ERROR_IN_STREAM_QUOTA: ProviderUnauthorized,
    Fault.ERROR_IN_STREAM_REJECTED: ProviderRejected,
    Fault.ERROR_IN_STREAM_STATUS: ProviderUnavailable,
}

STOP = FinishReason.STOP
EMOJI = TEXT.replace(" can", "\U0001f600")
REPLACED = TEXT.replace(" can", "a\ufffdb")
CHAT_SURVIVED: dict[Fault, tuple[str, FinishReason, bool]] = {
    Fault.WRONG_CONTENT_TYPE: (TEXT, STOP, True),
    Fault.CONTENT_LENGTH_LIE: (TEXT, STOP, True),
    Fault.PACKED: (TEXT, STOP, True),
    Fault.BYTE_BY_BYTE: (TEXT, STOP, True),
    Fault.IGNORES_STREAM: (TEXT, STOP, True),
    Fault.NULL_CONTENT: (TEXT, STOP, True),
    Fault.NO_DONE: (TEXT, STOP, True),
    Fault.DUPLICATE_FINISH: (TEXT, STOP, True),
    Fault.CONTENT_AFTER_FINISH: (TEXT, STOP, True),
    Fault.RESET_AFTER_FINISH: (TEXT, STOP, False),
    Fault.FINISH_LENGTH: (TEXT, FinishReason.LENGTH, True),
    Fault.FINISH_CONTENT_FILTER: (TEXT, FinishReason.CONTENT_FILTER, True),
    Fault.FINISH_MAX_TOKENS: (TEXT, FinishReason.LENGTH, True),
    Fault.FINISH_IN_EVERY_CHUNK: (TEXT, STOP, True),
    Fault.BARE_DATA: (TEXT, STOP, True),
    Fault.MISSING_CHOICES: (TEXT, STOP, True),
    Fault.CONTENT_PARTS: (TEXT, STOP, True),
    Fault.CONTENT_ENCODING_NONE: (TEXT, STOP, True),
    Fault.EVENTS_AS_JSON: (TEXT, STOP, True),
    Fault.JSON_AS_EVENTS: (TEXT, STOP, True),
    Fault.HALVED_EMOJI: (EMOJI, STOP, True),
    Fault.THINK_TAGS: (TEXT, STOP, True),
    Fault.REASONING_CONTENT: (TEXT, STOP, True),
    Fault.REFUSAL: (TEXT, FinishReason.CONTENT_FILTER, True),
    Fault.USAGE_MISSING: (TEXT, STOP, False),
    Fault.USAGE_STALLED: (TEXT, STOP, False),
    Fault.USAGE_WITH_FINISH: (TEXT, STOP, True),
    Fault.USAGE_NEGATIVE: (TEXT, STOP, False),
    Fault.USAGE_NOT_INTS: (TEXT, STOP, False),
    Fault.LONE_SURROGATES: (REPLACED, STOP, True),
    Fault.NUL: (REPLACED, STOP, True),
    Fault.INVALID_UTF8: (REPLACED, STOP, True),
    Fault.CRLF: (TEXT, STOP, True),
    Fault.BARE_CR: (TEXT, STOP, True),
    Fault.HEARTBEATS: (TEXT, STOP, True),
    Fault.MULTI_LINE_DATA: (TEXT, STOP, True),
    Fault.NO_LAST_BLANK_LINE: (TEXT, STOP, True),
}
"""Text, finish reason, and whether the token counts are known."""

SPEECH_FAILURES = REFUSALS | {
    Fault.RESET_AT_TOKEN: UpstreamIncomplete,
    Fault.STALL_AT_TOKEN: ProviderTimeout,
    Fault.CONTENT_LENGTH_LIE: UpstreamIncomplete,
    Fault.MP3: CompressedSpeech,
    Fault.MP3_ID3: CompressedSpeech,
    Fault.SOUND_IS_TEXT: UpstreamIncomplete,
}
ONLY_REALTIME = {
    Fault.BAD_BASE64,
    Fault.REWORDED,
    Fault.REWORDED_FIRST,
    Fault.RESPONSE_FAILED,
    Fault.RESPONSE_INCOMPLETE,
}


SILENCES = {
    Fault.STALL_BEFORE_HEADERS,
    Fault.STALL_AFTER_HEADERS,
    Fault.STALL_AT_TOKEN,
    Fault.SLOW_HEADERS,
}


@pytest.fixture(scope="module")
def running_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    running_provider.reset()
    return running_provider


@pytest.fixture
async def client(
    provider: Provider, request: pytest.FixtureRequest
) -> AsyncIterator[ProviderClient]:
    """Patient, except where the test is about a provider that says nothing."""
    seconds = 0.5 if is_about(request, SILENCES) else 10
    async with ProviderClient(
        provider.base_url, KEY, first_byte_timeout_seconds=seconds, chunk_timeout_seconds=seconds
    ) as client:
        yield client


@pytest.fixture
def chat_model(client: ProviderClient, request: pytest.FixtureRequest) -> OpenAIChatModel:
    seconds = 0.2 if is_about(request, {Fault.USAGE_STALLED}) else 10
    return OpenAIChatModel(client, "gpt-6-luna", usage_wait_seconds=seconds)


def is_about(request: pytest.FixtureRequest, faults: set[Fault]) -> bool:
    callspec = getattr(request.node, "callspec", None)
    return callspec is not None and callspec.params.get("fault") in faults


async def answer_of(
    model: OpenAIChatModel, request: ChatRequest = HELLO
) -> tuple[str, ChatFinished]:
    with anyio.fail_after(60):
        items = [item async for item in model.stream(request)]
    *deltas, finished = items
    assert isinstance(finished, ChatFinished)
    assert all(delta.text for delta in deltas if isinstance(delta, TextDelta | ReasoningDelta))
    texts = [delta.text for delta in deltas if isinstance(delta, TextDelta)]
    return "".join(texts), finished


def assert_says_nothing_of_the_provider(error: ProviderError) -> None:
    said = f"{error} {error.detail} {error!r} {error.__cause__!r}"
    for secret in (KEY, PROVIDER_WORDS, "127.0.0.1", "sk-", "http:"):
        assert secret not in said


def test_every_fault_of_the_provider_has_an_expectation() -> None:
    assert set(Fault) == (
        set(CHAT_FAILURES)
        | set(CHAT_SURVIVED)
        | set(SPEECH_FAILURES)
        | {Fault.WAV, Fault.WAV_OTHER_RATE, Fault.ODD_BYTES, Fault.ONLY_TOOL_CALLS}
        | ONLY_REALTIME
    )


async def test_a_chat_yields_its_text_and_then_its_finish_with_token_counts(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.chat.model, provider.chat.cached_tokens = "gpt-6-luna-2026-09-01", 3
    text, finished = await answer_of(chat_model)
    assert text == TEXT
    assert finished == ChatFinished(STOP, "gpt-6-luna-2026-09-01", 2, 3, 7)


async def test_the_request_says_what_was_asked_and_no_more(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    await answer_of(chat_model)
    prompt = [PromptMessage(Role.SYSTEM, "Be brief."), PromptMessage(Role.USER, "a\ud800b")]
    request = ChatRequest(prompt, model="other", temperature=0.0, max_output_tokens=5)
    await answer_of(chat_model, request)
    plain, full = (received.body for received in provider.to("chat"))
    assert plain == {
        "model": "gpt-6-luna",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert full["messages"][0] == {"role": "system", "content": "Be brief."}
    assert full["messages"][1]["content"] == "a\ufffdb"
    assert (full["model"], full["temperature"], full["max_tokens"]) == ("other", 0.0, 5)
    headers = provider.requests[0].headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"


async def test_openai_itself_gets_its_own_name_for_the_limit_and_the_proxy_is_honoured(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", provider.base_url.removesuffix("/v1"))
    async with ProviderClient("http://api.openai.com/v1", KEY) as client:
        request = ChatRequest(HELLO.messages, max_output_tokens=5)
        await answer_of(OpenAIChatModel(client, "gpt-6-luna"), request)
    [received] = provider.to("chat")
    assert received.body["max_completion_tokens"] == 5
    assert "max_tokens" not in received.body
    assert received.headers["Host"] == "api.openai.com"


async def test_a_server_without_a_key_gets_none_and_keeps_the_query_of_its_address(
    provider: Provider,
) -> None:
    async with ProviderClient(provider.base_url + "?api-version=3", "") as client:
        await answer_of(OpenAIChatModel(client, "local"))
    [received] = provider.requests
    assert "Authorization" not in received.headers
    assert received.query == {"api-version": "3"}


def test_a_key_that_no_header_can_carry_is_refused_without_being_repeated() -> None:
    with pytest.raises(ValueError, match="characters") as caught:
        ProviderClient("http://127.0.0.1/v1", "sk-one\nsk-two")
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("fault", CHAT_FAILURES)
async def test_a_chat_that_fails_raises_the_documented_error(
    fault: Fault, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.chat.text = ["x" * 4000] * 5 if fault is Fault.ENDLESS else TEXT
    provider.fail(fault)
    with anyio.fail_after(60), pytest.raises(ProviderError) as caught:
        await answer_of(chat_model)
    assert type(caught.value) is CHAT_FAILURES[fault]
    assert_says_nothing_of_the_provider(caught.value)
    assert not [request for request in provider.requests if "elsewhere" in request.path]
    provider.chat.text = TEXT
    assert (await answer_of(chat_model))[0] == TEXT  # the client is as good as new


@pytest.mark.parametrize("fault", CHAT_SURVIVED)
async def test_a_chat_that_is_only_odd_is_read_right(
    fault: Fault, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.fail(fault)
    text, finished = await answer_of(chat_model)
    counts = (finished.prompt_tokens, finished.cached_tokens, finished.completion_tokens)
    expected_text, finish_reason, are_counted = CHAT_SURVIVED[fault]
    assert (text, finished.finish_reason) == (expected_text, finish_reason)
    assert counts == ((2, 0, 7) if are_counted else (None, None, None))


async def test_text_before_a_failure_is_delivered(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.fail(Fault.INVALID_JSON_CHUNK)
    items: list[ChatItem] = []

    async def listen() -> None:
        async for item in chat_model.stream(HELLO):
            items.append(item)  # noqa: PERF401  # a comprehension would lose them

    with pytest.raises(UpstreamIncomplete):
        await listen()
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == "Hello! How"


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (Fault.STATUS_429_SECONDS, 7),
        (Fault.STATUS_429_DATE, 7),
        (Fault.STATUS_429_MS, 7),
        (Fault.STATUS_503, 7),
        (Fault.STATUS_429_NONSENSE, None),
        (Fault.STATUS_500, None),
    ],
)
async def test_the_wait_that_a_provider_asks_for_is_passed_on(
    fault: Fault, seconds: int | None, provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.fail(fault)
    with pytest.raises(ProviderError) as caught:
        await answer_of(chat_model)
    wanted = caught.value.retry_after_seconds
    assert wanted == (seconds if seconds is None else pytest.approx(seconds, abs=1.5))


@pytest.mark.parametrize("reached", ["refused", "tls"])
async def test_a_server_that_is_not_there_is_unavailable(provider: Provider, reached: str) -> None:
    url = {"refused": "http://127.0.0.1:9/v1", "tls": provider.base_url.replace("http", "https")}
    async with ProviderClient(url[reached], KEY) as client:
        with pytest.raises(ProviderUnavailable) as caught:
            await answer_of(OpenAIChatModel(client, "m"))
    assert_says_nothing_of_the_provider(caught.value)


async def test_the_log_names_the_error_at_debug_and_never_has_the_providers_words_or_a_key(
    provider: Provider, chat_model: OpenAIChatModel, caplog: pytest.LogCaptureFixture
) -> None:
    for level in (logging.INFO, logging.DEBUG):
        caplog.set_level(level)
        provider.fail(Fault.STATUS_401)
        with pytest.raises(ProviderUnauthorized):
            await answer_of(chat_model)
        assert ("test_error" in caplog.text) is (level == logging.DEBUG)
    assert PROVIDER_WORDS not in caplog.text
    assert KEY not in caplog.text
    assert "sk-proj" not in caplog.text


async def test_turns_share_a_connection(provider: Provider, chat_model: OpenAIChatModel) -> None:
    for _ in range(5):
        await answer_of(chat_model)
    assert len({request.peer_port for request in provider.requests}) == 1


async def test_closing_a_chat_early_breaks_the_request_off(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = ["word "] * 1000, 0.02
    async with aclosing(chat_model.stream(HELLO)) as items:
        assert await anext(items) == TextDelta("word ")
    [request] = provider.requests
    assert await anyio.to_thread.run_sync(provider.wait_until, lambda: request.is_aborted)


async def test_cancelling_a_chat_breaks_the_request_off(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.chat.first_byte_delay_seconds = 60
    with anyio.move_on_after(0.1) as scope:
        await answer_of(chat_model)
    assert scope.cancelled_caught
    [request] = provider.requests
    assert await anyio.to_thread.run_sync(provider.wait_until, lambda: request.is_aborted)


async def test_a_slow_reader_is_not_taken_for_a_silent_provider(provider: Provider) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = ["word "] * 12, 0.1
    async with (
        ProviderClient(provider.base_url, KEY, chunk_timeout_seconds=0.5) as client,
        aclosing(OpenAIChatModel(client, "m").stream(HELLO)) as items,
    ):
        await anext(items)
        assert await anyio.to_thread.run_sync(
            provider.wait_until, lambda: provider.requests[0].is_ended
        )
        rest = [item async for item in items]
    assert isinstance(rest[-1], ChatFinished)


async def test_fifty_chats_at_once_each_get_their_own_answer(
    provider: Provider, chat_model: OpenAIChatModel
) -> None:
    provider.chat.echo, provider.chat.token_delay_seconds = True, 0.005
    answers: dict[int, str] = {}

    async def ask(number: int) -> None:
        request = ChatRequest([PromptMessage(Role.USER, f"this is number {number} of them")])
        answers[number], _ = await answer_of(chat_model, request)

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(ask, number)
    assert answers == {n: f'You said: "this is number {n} of them"' for n in range(50)}


# Speech


async def test_a_recording_becomes_a_transcript(provider: Provider, client: ProviderClient) -> None:
    provider.transcription.text, provider.transcription.language = "¿Qué tal?", "es"
    transcriber = OpenAITranscriber(client, "gpt-transcribe")
    recording = Recording(bytes(3 << 20), AudioFormat.MP4, 60)
    assert await transcriber.transcribe(recording, language="es") == Transcript("¿Qué tal?", "es")
    body = provider.requests[0].body
    assert body["file"] == {
        "filename": "audio.mp4",
        "content_type": "audio/mp4",
        "bytes": recording.data,
    }
    assert (body["model"], body["response_format"]) == ("gpt-transcribe", "json")
    assert body["language"] == "es"


@pytest.mark.parametrize(
    ("model", "streams", "pieces"),
    [
        ("gpt-transcribe", True, ["What", " is", " it?"]),
        ("gpt-transcribe", False, []),
        ("whisper-1", True, []),
    ],
)
async def test_a_transcript_is_streamed_where_the_model_does(
    model: str, streams: bool, pieces: list[str], provider: Provider, client: ProviderClient
) -> None:
    provider.transcription.text, provider.transcription.streams = "What is it?", streams
    heard: list[str] = []
    transcriber = OpenAITranscriber(client, model)

    transcript = await transcriber.transcribe(RECORDING, on_words=heard.append)

    assert transcript.text == "What is it?"
    assert heard == pieces
    assert ("stream" in provider.requests[0].body) == (model != "whisper-1")


async def test_a_streamed_transcript_without_its_end_is_no_transcript(
    provider: Provider, client: ProviderClient
) -> None:
    provider.transcription.streams = provider.transcription.is_cut_off = True

    with pytest.raises(UpstreamIncomplete):
        await OpenAITranscriber(client, "gpt-transcribe").transcribe(
            RECORDING, on_words=lambda _words: None
        )


@pytest.mark.parametrize(("named", "language"), [("english", None), ("pt-BR", "pt"), ("", None)])
async def test_silence_is_an_empty_transcript_and_a_language_is_a_code_or_nothing(
    named: str, language: str | None, provider: Provider, client: ProviderClient
) -> None:
    provider.transcription.text, provider.transcription.language = "", named
    transcript = await OpenAITranscriber(client, "m").transcribe(RECORDING)
    assert transcript == Transcript("", language)
    assert "language" not in provider.requests[0].body


@pytest.mark.parametrize("fault", [*REFUSALS, Fault.TRUNCATED_JSON, Fault.CONTENT_LENGTH_LIE])
async def test_a_transcription_that_fails_raises_the_documented_error(
    fault: Fault, provider: Provider, client: ProviderClient
) -> None:
    provider.transcription.text = "word " * (500 if fault is Fault.ENDLESS else 5)
    provider.fail(fault, "transcription")
    with anyio.fail_after(60), pytest.raises(ProviderError) as caught:
        await OpenAITranscriber(client, "m").transcribe(RECORDING)
    assert type(caught.value) is REFUSALS.get(fault, UpstreamIncomplete)
    assert_says_nothing_of_the_provider(caught.value)


async def test_speech_is_streamed_as_whole_samples(
    provider: Provider, client: ProviderClient
) -> None:
    provider.speech.piece_bytes = 777
    speaker = OpenAISpeaker(client, "tts-1")
    pieces = [piece async for piece in speaker.speak("Good morning!", voice="nova")]
    assert not [piece for piece in pieces if len(piece) % 2 or not piece]
    assert b"".join(pieces) == provider.speech.pcm("Good morning!")
    assert (speaker.sample_rate_hz, speaker.max_characters) == (24_000, 4096)
    assert provider.requests[0].body == {
        "model": "tts-1",
        "voice": "nova",
        "input": "Good morning!",
        "response_format": "pcm",
    }


async def test_speech_is_heard_before_it_is_complete(
    provider: Provider, client: ProviderClient
) -> None:
    provider.fail(Fault.STALL_AT_TOKEN, "speech")
    async with aclosing(OpenAISpeaker(client, "tts-1").speak("Good morning!", voice="a")) as sound:
        with anyio.fail_after(60):
            assert await anext(sound)


@pytest.mark.parametrize("fault", [Fault.WAV, Fault.ODD_BYTES, Fault.BYTE_BY_BYTE, Fault.PACKED])
async def test_speech_in_odd_clothes_is_undressed(
    fault: Fault, provider: Provider, client: ProviderClient
) -> None:
    provider.speech.ms_per_character = 10
    provider.fail(fault, "speech")
    sound = [piece async for piece in OpenAISpeaker(client, "tts-1").speak("Hello", voice="alloy")]
    expected = provider.speech.pcm("Hello")
    assert b"".join(sound) == (expected[:-2] if fault is Fault.ODD_BYTES else expected)


@pytest.mark.parametrize("fault", SPEECH_FAILURES)
async def test_speech_that_fails_raises_the_documented_error(
    fault: Fault, provider: Provider, client: ProviderClient
) -> None:
    provider.fail(fault, "speech", at=1)
    with anyio.fail_after(60), pytest.raises(ProviderError) as caught:
        async for _ in OpenAISpeaker(client, "tts-1").speak("Good morning!", voice="alloy"):
            pass
    assert type(caught.value) is SPEECH_FAILURES[fault]
    assert_says_nothing_of_the_provider(caught.value)


async def test_closing_speech_early_breaks_the_request_off(
    provider: Provider, client: ProviderClient
) -> None:
    provider.speech.piece_delay_seconds = 0.05
    speech = OpenAISpeaker(client, "tts-1").speak("a long text " * 50, voice="alloy")
    async with aclosing(speech) as pieces:
        await anext(pieces)
    [request] = provider.requests
    assert await anyio.to_thread.run_sync(provider.wait_until, lambda: request.is_aborted)


# The readers, which know nothing of sockets


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


CUTS = st.lists(st.integers(0, 1 << 16), max_size=60)
LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b"data:  \xc3\xa9", b": hi", b"event: x", b"id", b"", b"dat"]
)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n"])


@given(lines=st.lists(st.tuples(LINES, LINE_ENDS)), is_marked=st.booleans(), cuts=CUTS)
def test_events_are_the_same_wherever_the_stream_is_cut(
    lines: list[tuple[bytes, bytes]],
    is_marked: bool,
    cuts: list[int],
) -> None:
    stream = b"\xef\xbb\xbf" * is_marked + b"".join(line + end for line, end in lines)

    def read(pieces: list[bytes]) -> tuple[list[bytes], bool]:
        reader = EventReader(max_event_bytes=12)
        events = [event for piece in pieces for event in reader.feed(piece)]
        return events + reader.end(), reader.overflowed

    assert read(split(stream, cuts)) == read([stream])


@given(
    texts=st.lists(st.text(alphabet="aé漢😀\n\r\0"), max_size=8),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts=CUTS,
)
def test_an_answer_is_the_same_wherever_the_stream_is_cut(
    texts: list[str], line_end: bytes, cuts: list[int]
) -> None:
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
    lines = [b"data: " + orjson.dumps(chunk) for chunk in chunks]
    stream = b"".join(line + line_end * 2 for line in lines)
    reply = ReplyReader("m", SettingNames("CHAT_MODEL"))
    pieces = [*split(stream, cuts), b""]
    deltas = [delta for piece in pieces for delta in reply.feed(piece)]
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    assert text == "".join(texts).replace("\0", "\ufffd")
    assert reply.finish() == ChatFinished(FinishReason.LENGTH, "m")


@given(
    samples=st.binary(min_size=2, max_size=4000),
    is_wav=st.booleans(),
    cuts=CUTS,
)
def test_samples_are_the_same_wherever_the_sound_is_cut(
    samples: bytes, is_wav: bool, cuts: list[int]
) -> None:
    samples = b"\0\0" + samples
    body = spoil_speech(samples, Fault.WAV) if is_wav else samples
    reader = PcmReader("Hello.")
    pieces = [reader.feed(piece) for piece in split(body, cuts)] + [reader.end()]
    assert not [piece for piece in pieces if len(piece) % 2]
    assert b"".join(pieces) == samples[: len(samples) & ~1]


@pytest.mark.parametrize("start", [b"\xff\xff", b"\xff\xfb\x90\x64", b"\xff\xf3\x84\xc4"])
def test_quiet_samples_are_not_taken_for_mp3(start: bytes) -> None:
    samples = start + bytes(4000)
    reader = PcmReader("Hello.")
    assert reader.feed(samples) + reader.end() == samples


def test_a_wav_file_ends_where_it_says() -> None:
    body = spoil_speech(b"\1\0" * 100, Fault.WAV).replace(b"\xff" * 4 + b"\1", b"\xc8\0\0\0\1")
    reader = PcmReader("Hello.")
    assert reader.feed(body + b"LIST and so on") + reader.end() == b"\1\0" * 100


def test_speech_that_never_ends_is_refused_soon() -> None:
    second = bytes(2 * 24_000)
    reader = PcmReader("Hello.")
    assert sum(len(reader.feed(second)) for _ in range(36)) == 36 * len(second)
    with pytest.raises(UpstreamIncomplete, match="far longer than its text"):
        reader.feed(b"\0\0")


# The provider itself, as tests of a server in another process use it


def test_the_provider_serves_and_is_told_what_to_do_from_outside() -> None:
    command = [sys.executable, "-m", "tests.support.provider", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        root = base_url.removesuffix("/v1")

        def post(url: str, body: object) -> bytes:
            headers = {"Content-Type": "application/json"}
            with urlopen(Request(url, orjson.dumps(body), headers)) as response:  # noqa: S310
                return response.read()

        try:
            orders = {"chat": {"text": ["one"]}, "faults": [{"fault": "no_done", "times": None}]}
            post(f"{root}/_control", orders)
            chat = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            whole = json.loads(post(f"{base_url}/chat/completions", chat))
            streamed = post(f"{base_url}/chat/completions", chat | {"stream": True})
            with urlopen(f"{root}/_requests") as response:  # noqa: S310
                requests = json.loads(response.read())
        finally:
            process.terminate()
    assert whole["choices"][0]["message"]["content"] == "one"
    assert b'"one"' in streamed
    assert b"[DONE]" not in streamed
    assert [request["body"] for request in requests] == [chat, chat | {"stream": True}]
    assert process.returncode == 0

"""A Realtime model as a reader, against a real WebSocket server."""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import anyio
import pytest

from app.services.openai_service import (
    OpenAISpeaker,
    ProviderClient,
    RealtimeSpeaker,
    make_speaker,
)
from app.services.ports import (
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnauthorized,
    ProviderUnavailable,
    UpstreamIncomplete,
)
from tests.support.planted_secrets import PROVIDER_KEY as KEY
from tests.support.provider import PROVIDER_WORDS, Fault, Provider

pytestmark = pytest.mark.anyio

MODEL = "gpt-realtime-2.1-mini"
TEXT = "Good morning! It is 7 o'clock."

FAILURES: dict[Fault, type[ProviderError]] = {
    Fault.STATUS_401: ProviderUnauthorized,
    Fault.STATUS_403: ProviderUnauthorized,
    Fault.STATUS_404: ProviderRejected,
    Fault.STATUS_429_SECONDS: ProviderRateLimited,
    Fault.STATUS_500: ProviderUnavailable,
    Fault.STATUS_503: ProviderUnavailable,
    Fault.REDIRECT: ProviderRejected,
    Fault.CLOSE_BEFORE_HEADERS: ProviderUnavailable,
    Fault.RESET_BEFORE_HEADERS: ProviderUnavailable,
    Fault.STALL_BEFORE_HEADERS: ProviderTimeout,
    Fault.SLOW_HEADERS: ProviderTimeout,
    Fault.NOT_HTTP: UpstreamIncomplete,
    Fault.STALL_AFTER_HEADERS: ProviderTimeout,
    Fault.STALL_AT_TOKEN: ProviderTimeout,
    Fault.RESET_AT_TOKEN: UpstreamIncomplete,
    Fault.INVALID_JSON_CHUNK: UpstreamIncomplete,
    Fault.EMPTY: UpstreamIncomplete,
    Fault.NO_FINISH: UpstreamIncomplete,
    Fault.BAD_BASE64: UpstreamIncomplete,
    Fault.REWORDED_FIRST: UpstreamIncomplete,
    Fault.RESPONSE_FAILED: ProviderUnauthorized,
    Fault.RESPONSE_INCOMPLETE: UpstreamIncomplete,
    Fault.ERROR_IN_STREAM: UpstreamIncomplete,
    Fault.ERROR_IN_STREAM_RATE_LIMIT: ProviderRateLimited,
    Fault.ERROR_IN_STREAM_OVERLOADED: ProviderUnavailable,
    Fault.ERROR_IN_STREAM_QUOTA: ProviderUnauthorized,
    Fault.ERROR_IN_STREAM_REJECTED: ProviderRejected,
    Fault.ERROR_IN_STREAM_STATUS: ProviderUnavailable,
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
    callspec = getattr(request.node, "callspec", None)
    fault = callspec.params.get("fault") if callspec else None
    seconds = 0.5 if fault and FAILURES[fault] is ProviderTimeout else 10
    async with ProviderClient(
        provider.base_url, KEY, first_byte_timeout_seconds=seconds, chunk_timeout_seconds=seconds
    ) as client:
        yield client


@pytest.fixture
def speaker(client: ProviderClient) -> RealtimeSpeaker:
    return RealtimeSpeaker(client, MODEL)


async def sound_of(speaker: RealtimeSpeaker, text: str = TEXT, voice: str = "alloy") -> bytes:
    with anyio.fail_after(60):
        return b"".join([piece async for piece in speaker.speak(text, voice=voice)])


async def test_the_models_name_chooses_the_endpoint(client: ProviderClient) -> None:
    assert isinstance(make_speaker(client, MODEL), RealtimeSpeaker)
    assert isinstance(make_speaker(client, "tts-1"), OpenAISpeaker)


async def test_a_text_is_read_in_a_response_out_of_band(
    provider: Provider, speaker: RealtimeSpeaker
) -> None:
    assert await sound_of(speaker) == provider.speech.pcm(TEXT)
    assert (speaker.sample_rate_hz, speaker.max_characters) == (24_000, 4096)
    [received] = provider.requests
    assert (received.path, received.query) == ("/v1/realtime", {"model": MODEL})
    assert received.headers["Authorization"] == f"Bearer {KEY}"
    update, create = received.events
    session = update["session"]
    assert session["type"] == "realtime"
    assert session["output_modalities"] == ["audio"]
    assert "word for word" in session["instructions"]
    output = session["audio"]["output"]
    assert output == {"voice": "alloy", "format": {"type": "audio/pcm", "rate": 24_000}}
    response = create["response"]
    assert response["conversation"] == "none"
    assert response["input"][0]["content"] == [{"type": "input_text", "text": TEXT}]


async def test_pieces_are_whole_samples_and_come_while_the_model_speaks(
    provider: Provider, speaker: RealtimeSpeaker
) -> None:
    provider.speech.piece_bytes = 4801
    pieces = [piece async for piece in speaker.speak(TEXT, voice="alloy")]
    assert len(pieces) > 2
    assert not [piece for piece in pieces if len(piece) % 2 or not piece]
    assert b"".join(pieces) == provider.speech.pcm(TEXT)


@pytest.mark.parametrize("fault", FAILURES)
async def test_speech_that_fails_raises_the_documented_error(
    fault: Fault, provider: Provider, speaker: RealtimeSpeaker
) -> None:
    provider.fail(fault, "realtime", times=2)  # aiohttp repeats a handshake that got no answer
    with pytest.raises(ProviderError) as caught:
        await sound_of(speaker)
    provider.planted.clear()
    assert type(caught.value) is FAILURES[fault]
    said = f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
    for secret in (KEY, PROVIDER_WORDS, "127.0.0.1", "sk-"):
        assert secret not in said
    assert not [request for request in provider.requests if "elsewhere" in request.path]
    assert await sound_of(speaker) == provider.speech.pcm(TEXT)


async def test_the_wait_that_a_provider_asks_for_is_passed_on(
    provider: Provider, speaker: RealtimeSpeaker
) -> None:
    provider.fail(Fault.STATUS_429_SECONDS, "realtime")
    with pytest.raises(ProviderRateLimited) as caught:
        await sound_of(speaker)
    assert caught.value.retry_after_seconds == 7


async def test_other_words_than_asked_for_are_reported_when_they_have_left(
    provider: Provider, speaker: RealtimeSpeaker, caplog: pytest.LogCaptureFixture
) -> None:
    provider.fail(Fault.REWORDED, "realtime")
    assert await sound_of(speaker) == provider.speech.pcm(TEXT)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "other words" in record.getMessage()
    assert "morning" not in record.getMessage()


@pytest.mark.parametrize(
    "text", ["", "…", "GOOD morning, it is 7 o clock", "早上好 现在七点", "Grüße!"]
)
async def test_the_same_words_are_not_reported(
    text: str, provider: Provider, speaker: RealtimeSpeaker, caplog: pytest.LogCaptureFixture
) -> None:
    provider.speech.ms_per_character = 500
    await sound_of(speaker, text or TEXT)
    assert not caplog.records


@pytest.mark.parametrize(
    ("voice", "spoken"),
    [
        ("fable", "ballad"),
        ("onyx", "cedar"),
        ("nova", "marin"),
        ("alloy", "alloy"),
        ("echo", "echo"),
        ("shimmer", "shimmer"),
        ("my-own", "my-own"),
    ],
)
async def test_a_voice_that_realtime_lacks_is_spoken_by_its_neighbour(
    voice: str,
    spoken: str,
    provider: Provider,
    speaker: RealtimeSpeaker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        await sound_of(speaker, voice=voice)
    voices = [
        request.events[0]["session"]["audio"]["output"]["voice"] for request in provider.requests
    ]
    assert voices == [spoken, spoken]
    assert len(caplog.records) == (voice != spoken)


async def test_closing_early_closes_the_session(
    provider: Provider, speaker: RealtimeSpeaker
) -> None:
    provider.speech.piece_delay_seconds = 0.05
    with anyio.fail_after(2):
        async with aclosing(speaker.speak("a long text " * 50, voice="alloy")) as pieces:
            await anext(pieces)
    [request] = provider.requests
    assert await anyio.to_thread.run_sync(provider.wait_until, lambda: request.is_ended)


async def test_cancelling_closes_the_session(provider: Provider, speaker: RealtimeSpeaker) -> None:
    provider.fail(Fault.STALL_AFTER_HEADERS, "realtime")
    with anyio.move_on_after(0.1) as scope:
        await sound_of(speaker)
    assert scope.cancelled_caught
    [request] = provider.requests
    assert await anyio.to_thread.run_sync(provider.wait_until, lambda: request.is_ended)


async def test_ten_texts_at_once_each_get_their_own_sound(
    provider: Provider, speaker: RealtimeSpeaker
) -> None:
    provider.speech.piece_delay_seconds = 0.005
    sounds: dict[int, bytes] = {}

    async def read(number: int) -> None:
        sounds[number] = await sound_of(speaker, "word " * number)

    async with anyio.create_task_group() as tasks:
        for number in range(1, 11):
            tasks.start_soon(read, number)
    assert sounds == {n: provider.speech.pcm("word " * n) for n in range(1, 11)}

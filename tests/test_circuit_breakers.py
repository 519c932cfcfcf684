"""Retries and circuit breakers of all three ports, over adapters of a real HTTP provider."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import anyio
import pytest

from app.services.openai_service import (
    OpenAIChatModel,
    OpenAISpeaker,
    OpenAITranscriber,
    ProviderClient,
)
from app.services.ports import (
    AudioFormat,
    ChatRequest,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    Recording,
)
from app.services.prompt_lines import PromptMessage
from app.services.resilience import (
    CircuitBreakers,
    RetryingChatModel,
    RetryingSpeaker,
    RetryingTranscriber,
)
from tests.support.provider import Fault, Provider

pytestmark = pytest.mark.anyio

RECORDING = Recording(b"RIFF" + bytes(2000), AudioFormat.WAV, 0.1)
PORTS = ("chat", "transcription", "speech")
THRESHOLD = 5


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Ports:
    """The three ports of one server, each with breakers of its own, as the platform has them."""

    client: ProviderClient
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.chat_model = RetryingChatModel(
            OpenAIChatModel(self.client, "gpt-6-luna"),
            CircuitBreakers("gpt-6-luna", clock=self.clock),
            self.skip_wait,
        )
        self.transcriber = RetryingTranscriber(
            OpenAITranscriber(self.client, "gpt-transcribe"),
            CircuitBreakers(clock=self.clock),
            self.skip_wait,
        )
        self.speaker = RetryingSpeaker(
            OpenAISpeaker(self.client, "tts-1"), CircuitBreakers(clock=self.clock), self.skip_wait
        )

    async def skip_wait(self, seconds: float) -> None:
        """Stand in for the wait between two attempts."""
        assert 0 <= seconds <= 10
        await anyio.lowlevel.checkpoint()

    def use(self, port: str) -> Callable[[], Awaitable[object]]:
        """Return a call of one port, which raises `ProviderError`."""
        return {"chat": self.chat, "transcription": self.transcribe, "speech": self.speak}[port]

    async def chat(self, model: str | None = None) -> list[object]:
        request = ChatRequest([PromptMessage("user", "Hi")], model=model)
        return [item async for item in self.chat_model.stream(request)]

    async def transcribe(self) -> object:
        return await self.transcriber.transcribe(RECORDING)

    async def speak(self) -> list[bytes]:
        return [piece async for piece in self.speaker.speak("Hello.", voice="alloy")]

    async def fail(self, port: str, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(ProviderError):
                await self.use(port)()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.speech.ms_per_character = 5
        yield provider


@pytest.fixture
async def ports(provider: Provider) -> AsyncIterator[Ports]:
    async with ProviderClient(
        provider.base_url, "key", first_byte_timeout_seconds=0.5, chunk_timeout_seconds=0.5
    ) as client:
        yield Ports(client)


async def open_breaker(provider: Provider, ports: Ports, port: str, fault: Fault) -> None:
    provider.fail(fault, port, times=None)
    while len(provider.to(port)) < THRESHOLD:
        await ports.fail(port)
    assert len(provider.to(port)) == THRESHOLD
    provider.planted.clear()


@pytest.mark.parametrize("port", PORTS)
async def test_single_outages_among_successes_never_open_the_breaker(
    port: str, provider: Provider, ports: Ports
) -> None:
    for _ in range(THRESHOLD + 1):
        provider.fail(Fault.STATUS_500, port)
        await ports.use(port)()  # the second try is served

    assert len(provider.to(port)) == 2 * (THRESHOLD + 1)


async def test_transcriber_that_streams_words_is_a_success_too(
    provider: Provider, ports: Ports
) -> None:
    provider.transcription.streams = True
    for _ in range(THRESHOLD + 1):
        provider.fail(Fault.STATUS_500, "transcription")
        await ports.transcriber.transcribe(RECORDING, on_words=lambda _words: None)

    assert len(provider.to("transcription")) == 2 * (THRESHOLD + 1)


@pytest.mark.parametrize("port", ["chat", "speech"])
async def test_caller_that_leaves_after_the_first_item_has_closed_the_breaker(
    port: str, provider: Provider, ports: Ports
) -> None:
    for _ in range(THRESHOLD + 1):
        provider.fail(Fault.STATUS_500, port)
        stream = (
            ports.chat_model.stream(ChatRequest([PromptMessage("user", "Hi")]))
            if port == "chat"
            else ports.speaker.speak("Hello.", voice="alloy")
        )
        async with aclosing(stream) as items:
            await anext(items)

    assert len(provider.to(port)) == 2 * (THRESHOLD + 1)


@pytest.mark.parametrize(
    "fault", [Fault.STATUS_500, Fault.RESET_BEFORE_HEADERS, Fault.CLOSE_BEFORE_HEADERS]
)
@pytest.mark.parametrize("port", PORTS)
async def test_outages_in_a_row_open_the_breaker_and_one_probe_closes_it(
    port: str, fault: Fault, provider: Provider, ports: Ports
) -> None:
    await open_breaker(provider, ports, port, fault)
    with pytest.raises(ProviderUnavailable) as refused:
        await ports.use(port)()
    assert refused.value.retry_after_seconds == 5
    assert len(provider.to(port)) == THRESHOLD

    ports.clock.now += 5
    await ports.use(port)()
    await ports.use(port)()

    assert len(provider.to(port)) == THRESHOLD + 2


async def test_probe_that_fails_leaves_the_breaker_open(provider: Provider, ports: Ports) -> None:
    await open_breaker(provider, ports, "chat", Fault.STATUS_500)
    ports.clock.now += 5
    provider.fail(Fault.STATUS_500, "chat", times=None)

    await ports.fail("chat", times=3)

    assert len(provider.to("chat")) == THRESHOLD + 1


async def test_probe_that_is_left_early_leaves_the_next_probe_to_another(
    provider: Provider, ports: Ports
) -> None:
    await open_breaker(provider, ports, "chat", Fault.STATUS_500)
    provider.chat.first_byte_delay_seconds = 60
    ports.clock.now += 5
    with anyio.move_on_after(0.05):
        await ports.chat()
    provider.chat.first_byte_delay_seconds = 0
    await ports.fail("chat")

    ports.clock.now += 5
    await ports.chat()


@pytest.mark.parametrize(
    "fault",
    [
        Fault.STATUS_429,
        Fault.STATUS_429_NONSENSE,
        Fault.STATUS_400,
        Fault.STATUS_401,
        Fault.STATUS_402,
        Fault.STATUS_404,
        Fault.STATUS_408,
        Fault.STATUS_409,
        Fault.HTML,
        Fault.EMPTY,
        Fault.JSON_ERROR,
        Fault.TRUNCATED_JSON,
        Fault.FINISH_ERROR,
        Fault.RESET_AT_TOKEN,
        Fault.ERROR_IN_STREAM_STATUS,
        Fault.ERROR_IN_STREAM_OVERLOADED,
        Fault.STALL_BEFORE_HEADERS,
        Fault.STALL_AFTER_HEADERS,
    ],
)
async def test_answer_that_is_only_bad_never_opens_the_breaker(
    fault: Fault, provider: Provider, ports: Ports
) -> None:
    provider.fail(fault, times=None)
    await ports.fail("chat", times=THRESHOLD + 1)
    provider.planted.clear()

    await ports.chat()


@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE_HEADERS, Fault.STALL_AFTER_HEADERS])
async def test_silence_before_the_first_byte_is_waited_for_once(
    fault: Fault, provider: Provider, ports: Ports
) -> None:
    provider.fail(fault, times=None)

    with pytest.raises(ProviderTimeout):
        await ports.chat()

    assert len(provider.to("chat")) == 1


async def test_each_model_has_a_breaker_of_its_own(provider: Provider, ports: Ports) -> None:
    await open_breaker(provider, ports, "chat", Fault.STATUS_500)

    await ports.chat("another-model")

    for default in (None, "gpt-6-luna"):
        with pytest.raises(ProviderUnavailable):
            await ports.chat(default)


async def test_server_that_refuses_connections_opens_the_breaker() -> None:
    async with ProviderClient("http://127.0.0.1:9/v1", "key") as client:
        ports = Ports(client)
        await ports.fail("chat", times=2)
        with pytest.raises(ProviderUnavailable, match="left alone"):
            await ports.chat()


async def test_connection_that_is_not_made_in_time_is_an_outage() -> None:
    # Nothing accepts: the second connection to a backlog of none waits for ever.
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0, backlog=1)
    port = listener.listeners[0].extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610
    waiting = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(2)]
    try:
        async with ProviderClient(
            f"http://127.0.0.1:{port}/v1", "key", connect_timeout_seconds=0.2
        ) as client:
            with pytest.raises(ProviderTimeout) as caught:
                await Ports(client).chat()
    finally:
        for stream in waiting:
            await stream.aclose()
        await listener.aclose()

    assert caught.value.is_outage

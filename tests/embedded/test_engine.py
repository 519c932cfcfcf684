"""The engine with its real models, through the ports."""

import signal

import anyio
import pytest

from app.core.config import EmbeddedModels
from app.models.chat import Role
from app.services.local_service import (
    LocalChatModel,
    LocalEngine,
    LocalSpeaker,
    LocalTranscriber,
)
from app.services.ports import (
    AudioFormat,
    ChatFinished,
    ChatModel,
    ChatRequest,
    FinishReason,
    ProviderRejected,
    ProviderUnavailable,
    Recording,
    Speaker,
    TextDelta,
    Transcriber,
)
from app.services.prompt_lines import PromptMessage
from tests.embedded.conftest import DATA_DIR, MODELS
from tests.embedded.recordings import (
    CODECS,
    ENGLISH,
    SPANISH,
    accepted,
    as_wav,
    converted,
    samples,
    wav,
    word_error_rate,
)
from tests.support.processes import is_running, send_signal

pytestmark = [pytest.mark.anyio, pytest.mark.embedded]

MOST_ERRORS = 0.25


def asking(*lines: str, max_output_tokens: int | None = None) -> ChatRequest:
    """Make a conversation of which the user says the first line and every other one."""
    roles = (Role.USER, Role.ASSISTANT)
    messages = [PromptMessage(roles[n % 2], line) for n, line in enumerate(lines)]
    return ChatRequest(messages, temperature=0.0, max_output_tokens=max_output_tokens)


async def answer(engine: LocalEngine, request: ChatRequest) -> tuple[list[str], ChatFinished]:
    pieces: list[str] = []
    finished: ChatFinished | None = None
    async for event in LocalChatModel(engine).stream(request):
        assert finished is None
        if isinstance(event, TextDelta):
            pieces.append(event.text)
        elif isinstance(event, ChatFinished):
            finished = event
    assert finished is not None
    return pieces, finished


async def spoken(engine: LocalEngine, text: str, voice: str = "alloy") -> bytes:
    return b"".join([sound async for sound in LocalSpeaker(engine).speak(text, voice=voice)])


async def test_it_fulfils_the_ports(engine: LocalEngine) -> None:
    chat: ChatModel = LocalChatModel(engine)
    transcriber: Transcriber = LocalTranscriber(engine)
    speaker: Speaker = LocalSpeaker(engine)
    assert chat.context_tokens == 4096
    assert speaker.sample_rate_hz in {22_050, 24_000}
    assert speaker.max_characters >= 1000
    assert transcriber is not None
    assert engine.is_ready


async def test_every_recording_is_understood(engine: LocalEngine) -> None:
    transcriber = LocalTranscriber(engine)
    pairs = [
        (said, (await transcriber.transcribe(wav(name), language="en")).text)
        for name, said in ENGLISH.items()
    ]
    assert word_error_rate(pairs) <= MOST_ERRORS
    assert word_error_rate(pairs) <= 0.1  # what these models really reach here


@pytest.mark.parametrize("kind", CODECS)
async def test_every_container_is_understood(engine: LocalEngine, kind: str) -> None:
    transcriber = LocalTranscriber(engine)
    pairs = [
        (ENGLISH[name], (await transcriber.transcribe(accepted(converted(name, kind).data))).text)
        for name in ("anna_03", "mike_06", "mike_10")
    ]
    assert word_error_rate(pairs) <= MOST_ERRORS


if MODELS is EmbeddedModels.DEFAULT:  # the small set knows English alone

    async def test_another_language_is_recognised(engine: LocalEngine) -> None:
        heard = await LocalTranscriber(engine).transcribe(accepted(wav("es_01").data))
        assert heard.language == "es"
        assert word_error_rate([(SPANISH, heard.text)]) <= MOST_ERRORS


async def test_a_long_recording_with_pauses_is_understood(engine: LocalEngine) -> None:
    names = [f"anna_{number:02}" for number in range(1, 11)]
    pause = bytes(2 * 16_000 * 3)
    recording = as_wav(pause.join(samples(name) for name in names), 16_000)
    heard = await LocalTranscriber(engine).transcribe(recording)
    assert recording.duration_seconds > 60
    assert word_error_rate([(" ".join(ENGLISH[name] for name in names), heard.text)]) <= MOST_ERRORS


async def test_silence_has_no_words(engine: LocalEngine) -> None:
    heard = await LocalTranscriber(engine).transcribe(as_wav(bytes(2 * 16_000 * 5), 16_000))
    assert heard.text == ""
    assert heard.language is None


async def test_what_is_no_sound_is_refused(engine: LocalEngine) -> None:
    noise = Recording(b"RIFF" + bytes(range(256)) * 40, AudioFormat.WAV, 1.0)
    with pytest.raises(ProviderRejected):
        await LocalTranscriber(engine).transcribe(noise)


async def test_what_is_spoken_is_understood_again(engine: LocalEngine) -> None:
    text = "The museum opens at nine. Please bring your ticket and a warm coat."
    pcm = await spoken(engine, text)
    recording = accepted(as_wav(pcm, LocalSpeaker(engine).sample_rate_hz).data)
    assert 2 < recording.duration_seconds < 15
    heard = await LocalTranscriber(engine).transcribe(recording)
    assert word_error_rate([(text, heard.text)]) <= MOST_ERRORS


async def test_sound_comes_sentence_by_sentence(engine: LocalEngine) -> None:
    text = " ".join(f"This is sentence number {number}." for number in range(1, 9))
    sound = LocalSpeaker(engine).speak(text, voice="nova")
    first = await anext(sound)
    assert len(first) % 2 == 0
    await sound.aclose()
    whole = await spoken(engine, "It goes on after that.")
    assert len(whole) > len(first) // 4


@pytest.mark.parametrize(
    "text",
    [
        "Привет, как дела?",
        "こんにちは",
        "¿Cómo estás, señorita?",
        "...",
        "😀",
        "",
        "x" * 300,
        "\ud800",
    ],
    ids=["russian", "japanese", "spanish", "dots", "emoji", "empty", "endless", "surrogate"],
)
async def test_no_text_breaks_the_speaker(engine: LocalEngine, text: str) -> None:
    assert len(await spoken(engine, text, voice="no-such-voice")) >= 2


async def test_chat_streams_and_counts(engine: LocalEngine) -> None:
    pieces, finished = await answer(engine, asking("Say hello to Anna.", max_output_tokens=60))
    assert len(pieces) > 1
    assert all(pieces)
    assert finished.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
    assert finished.prompt_tokens
    assert finished.completion_tokens


async def test_chat_stops_at_the_limit_and_says_so(engine: LocalEngine) -> None:
    _, finished = await answer(engine, asking("Tell me a long story.", max_output_tokens=8))
    assert finished.finish_reason is FinishReason.LENGTH
    assert finished.completion_tokens == 8


async def test_chat_remembers_the_conversation(engine: LocalEngine) -> None:
    request = asking(
        "Remember this word: banana.",
        "I will remember: banana.",
        "Which word did I ask you to remember?",
        max_output_tokens=40,
    )
    pieces, _ = await answer(engine, request)
    assert "banana" in "".join(pieces)


async def test_two_answers_in_a_row_and_broken_text_are_taken(engine: LocalEngine) -> None:
    lines = [
        PromptMessage(Role.SYSTEM, "Be brief. \ud800"),
        PromptMessage(Role.USER, "Hello"),
        PromptMessage(Role.ASSISTANT, "Hi."),
        PromptMessage(Role.ASSISTANT, "How are you?"),
        PromptMessage(Role.USER, ""),
    ]
    _, finished = await answer(engine, ChatRequest(lines, max_output_tokens=8))
    assert finished.completion_tokens


async def test_a_prompt_that_does_not_fit_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(ProviderRejected, match="takes 4096"):
        await answer(engine, asking("word " * 6000))
    assert (await answer(engine, asking("Hello", max_output_tokens=4)))[1].completion_tokens


async def test_an_answer_that_nobody_wants_stops(engine: LocalEngine) -> None:
    """Both places at the model are free again at once: these answers would take minutes."""
    endless = asking("Count from one to one thousand in words.", max_output_tokens=3000)
    for _ in range(4):
        stream = LocalChatModel(engine).stream(endless)
        assert isinstance(await anext(stream), TextDelta)
        await stream.aclose()
    with anyio.fail_after(60):
        await answer(engine, asking("Hello", max_output_tokens=4))


async def test_a_cancelled_caller_leaves_nothing_running(engine: LocalEngine) -> None:
    long_prompt = asking("Repeat this: " + "one two three four " * 800, max_output_tokens=3000)
    for _ in range(3):
        with anyio.move_on_after(0.5) as scope:
            await answer(engine, long_prompt)
        assert scope.cancelled_caught
    with anyio.fail_after(60):
        await answer(engine, asking("Hello", max_output_tokens=4))


async def test_chat_and_ears_and_voice_work_at_once(engine: LocalEngine) -> None:
    done: list[str] = []

    async def chat() -> None:
        await answer(engine, asking("Tell me about the sea.", max_output_tokens=30))
        done.append("chat")

    async def listen() -> None:
        heard = await LocalTranscriber(engine).transcribe(wav("anna_01"))
        assert "museum" in heard.text
        done.append("listen")

    async def speak() -> None:
        assert await spoken(engine, "Good morning to you all.")
        done.append("speak")

    async with anyio.create_task_group() as tasks:
        for work in (chat, chat, chat, listen, speak):
            tasks.start_soon(work)
    assert sorted(done) == ["chat", "chat", "chat", "listen", "speak"]


async def test_a_killed_worker_fails_its_requests_and_comes_back(engine: LocalEngine) -> None:
    stream = LocalChatModel(engine).stream(asking("Tell a story.", max_output_tokens=3000))
    assert isinstance(await anext(stream), TextDelta)
    killed = engine.worker_pid
    assert killed is not None
    send_signal(killed, signal.SIGKILL)
    with pytest.raises(ProviderUnavailable):
        async for _ in stream:
            pass
    _, finished = await answer(engine, asking("Hello", max_output_tokens=4))
    assert finished.completion_tokens
    assert engine.worker_pid != killed


async def test_leaving_is_quick_and_ends_the_worker(embedded_weights: EmbeddedModels) -> None:
    async with LocalEngine(models=embedded_weights, data_dir=DATA_DIR) as engine:
        await LocalTranscriber(engine).transcribe(wav("anna_01"))  # others are still loading
        pid = engine.worker_pid
        leaving_at = anyio.current_time()
    assert anyio.current_time() - leaving_at < 5
    assert pid is not None
    assert not is_running(pid)


async def test_an_engine_that_was_not_entered_is_unavailable() -> None:
    engine = LocalEngine(models=MODELS, data_dir=DATA_DIR)
    with pytest.raises(ProviderUnavailable):
        await answer(engine, asking("Hello"))

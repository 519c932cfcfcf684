"""`/v1/audio` over HTTP: forms, limits, usage, and what is refused."""

import io
import itertools
import json
from base64 import b64decode
from typing import Any

import anyio
import av
import httpx2
import numpy as np
import orjson
import pytest
from sqlalchemy import select

from app.core.config import Provider, Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import Budget
from app.services.ports import AudioFormat, ProviderUnavailable, UpstreamIncomplete
from app.services.transcript_times import TimeUnit
from app.services.voice.audio_requests import SpeechRequest
from app.services.voice.speech_formats import SpeechFormat
from app.state import State
from tests.conftest import StartServer, client_of
from tests.support.fake_providers import FakeSpeaker, FakeTranscriber
from tests.voice.sounds import RATE_HZ, encoded

pytestmark = pytest.mark.anyio

TRANSCRIPTIONS, SPEECH = "/v1/audio/transcriptions", "/v1/audio/speech"
PRICES = {
    "stt-1": {"speech_in_minute": 0.6},
    "tts-1": {"speech_out_characters": 15},
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    paid = dict.fromkeys(("chat_provider", "stt_provider", "tts_provider"), Provider.OPENAI)
    models = {"stt_model": "stt-1", "tts_model": "tts-1", "prices": json.dumps(PRICES)}
    return settings.model_copy(update=paid | models)


async def transcribe(client: httpx2.AsyncClient, data: bytes, **fields: Any) -> httpx2.Response:
    form = {"model": "whisper-1"} | fields
    return await client.post(TRANSCRIPTIONS, data=form, files={"file": ("a.bin", data)})


async def speak(client: httpx2.AsyncClient, **fields: Any) -> httpx2.Response:
    return await client.post(SPEECH, json={"model": "tts-1", "input": "Hello there."} | fields)


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    *data, rest = response.text.split("\n\n")
    assert rest == ""
    return [orjson.loads(each.removeprefix("data: ")) for each in data]


def sound_of(data: bytes) -> np.ndarray:
    """Return the samples of a file at 24 kHz."""
    library: Any = av
    with library.open(io.BytesIO(data)) as container:
        resampler = library.AudioResampler("s16", "mono", 24_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames])


async def usage(client: httpx2.AsyncClient) -> dict[str, Any]:
    (row,) = (await client.get("/usage?group_by=model")).json()
    names = "model", "turns", "speech_in_seconds", "speech_out_characters", "cost_usd"
    return {name: row[name] for name in names}


async def test_transcript_in_every_form(
    client: httpx2.AsyncClient, transcriber: FakeTranscriber, speech: bytes
) -> None:
    transcriber.text = "One <two> three"
    seconds = {"type": "duration", "seconds": 3.45}

    short = await transcribe(client, speech)
    text = await transcribe(client, speech, response_format="text")
    srt = await transcribe(client, speech, response_format="srt")
    vtt = await transcribe(client, speech, response_format="vtt")
    verbose = (await transcribe(client, speech, response_format="verbose_json")).json()
    granularities = {"response_format": "verbose_json", "timestamp_granularities[]": ["word"]}
    words = (await transcribe(client, speech, **granularities)).json()

    assert short.json() == {"text": "One <two> three", "usage": seconds}
    assert (text.text, text.headers["content-type"]) == (
        "One <two> three\n",
        "text/plain; charset=utf-8",
    )
    assert srt.text == "1\n00:00:00,000 --> 00:00:01,500\nOne <two> three\n\n"
    assert vtt.text == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne &lt;two&gt; three\n\n"
    assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"
    assert (verbose["task"], verbose["language"], verbose["duration"]) == ("transcribe", "en", 3.45)
    assert [(each["start"], each["end"], each["text"]) for each in verbose["segments"]] == [
        (0, 1.5, "One <two> three")
    ]
    assert verbose["usage"] == seconds
    assert "segments" not in words
    assert words["words"][1] == {"word": "<two>", "start": 0.5, "end": 1}


async def test_transcript_as_events(client: httpx2.AsyncClient, speech: bytes) -> None:
    streamed = events(await transcribe(client, speech, stream="true"))

    kinds = [event["type"] for event in streamed]
    assert kinds == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(event["delta"] for event in streamed[:-1]) == streamed[-1]["text"]
    assert streamed[-1]["usage"] == {"type": "duration", "seconds": 3.45}


async def test_language_and_prompt_reach_the_provider(
    client: httpx2.AsyncClient, transcriber: FakeTranscriber, speech: bytes
) -> None:
    await client.post("/agents", json={"name": "Ada", "language": "pt-BR"})

    await transcribe(client, speech, language="de", prompt="Grüße, Ulm.")
    await transcribe(client, speech, model="agent-ada")
    await transcribe(client, speech, model="agent-none", language="")

    assert transcriber.languages == ["de", "pt", None]
    assert transcriber.prompts == ["Grüße, Ulm.", None, None]


async def test_usage_of_sound_is_reported_and_paid(
    client: httpx2.AsyncClient, speech: bytes, database: Database
) -> None:
    await transcribe(client, speech)
    heard = await usage(client)
    (row,) = (await client.get("/usage?group_by=")).json()
    async with database.reading() as db:
        (budget,) = (await db.scalars(select(Budget))).all()

    assert heard == {
        "model": "stt-1",
        "turns": 0,
        "speech_in_seconds": 3.45,
        "speech_out_characters": 0,
        "cost_usd": 0.0345,
    }
    assert row["cost_usd"] == 0.0345
    assert (budget.nanos, budget.upload_ms, budget.live_turns) == (34_500_000, 3450, 0)


async def test_usage_of_speech_is_reported_for_its_agent(client: httpx2.AsyncClient) -> None:
    made = await client.post("/agents", json={"name": "Ada"})

    await speak(client, model="agent-ada")

    (row,) = (await client.get("/usage?group_by=agent")).json()
    assert (row["agent_id"], row["speech_out_characters"]) == (made.json()["id"], 12)
    assert row["cost_usd"] == 0.00018


@pytest.mark.parametrize(
    ("failure", "status", "seconds"),
    [(ProviderUnavailable("No."), 503, []), (UpstreamIncomplete("No."), 502, [3.45])],
)
async def test_failure_is_paid_where_the_provider_worked(
    client: httpx2.AsyncClient,
    transcriber: FakeTranscriber,
    speech: bytes,
    failure: ProviderUnavailable,
    status: int,
    seconds: list[float],
) -> None:
    failure.retry_after_seconds = 3600  # so that it is not tried again

    async def fail() -> None:
        raise failure

    transcriber.while_hearing = fail
    refused = await transcribe(client, speech)
    streamed = await transcribe(client, speech, stream="true")

    assert (refused.status_code, streamed.status_code) == (status, status)
    assert refused.json()["error"]["type"] == "server_error"
    rows = (await client.get("/usage?group_by=model")).json()
    assert [row["speech_in_seconds"] for row in rows] == [2 * each for each in seconds]


async def test_silence_is_an_empty_transcript_and_costs_nothing(
    client: httpx2.AsyncClient, transcriber: FakeTranscriber
) -> None:
    silence = encoded(np.zeros(3 * RATE_HZ, np.int16), AudioFormat.FLAC)

    answers = [await transcribe(client, silence, response_format=form) for form in ("json", "srt")]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert (answers[0].json()["text"], answers[1].text) == ("", "")
    assert transcriber.recordings == []
    assert (await client.get("/usage?group_by=model")).json() == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": ""}, "model", "missing_required_parameter"),
        ({"language": "english"}, "language", "invalid_value"),
        ({"response_format": "xml"}, "response_format", "invalid_value"),
        ({"response_format": "diarized_json"}, "response_format", "unsupported_value"),
        ({"response_format": "srt", "stream": "true"}, "response_format", "unsupported_value"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]", "invalid_value"),
        ({"stream": "perhaps"}, "stream", "invalid_value"),
        ({"prompt": "a\0b"}, "prompt", "invalid_value"),
        ({"model": ["a", "b"]}, "model", "invalid_value"),
    ],
)
async def test_what_is_wrong_with_a_transcript_is_said(
    client: httpx2.AsyncClient,
    transcriber: FakeTranscriber,
    speech: bytes,
    fields: dict[str, Any],
    param: str,
    code: str,
) -> None:
    refused = await transcribe(client, speech, **fields)

    assert refused.status_code == 400, refused.text
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (param, code)
    assert transcriber.recordings == []


async def test_times_that_the_model_does_not_tell_are_refused(
    client: httpx2.AsyncClient, transcriber: FakeTranscriber, speech: bytes
) -> None:
    granularities = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    transcriber.time_units = frozenset((TimeUnit.SEGMENT,))
    words = await transcribe(client, speech, **granularities)
    transcriber.time_units = frozenset()
    subtitles = await transcribe(client, speech, response_format="vtt")

    assert words.json()["error"]["param"] == "timestamp_granularities[]"
    assert subtitles.json()["error"]["code"] == "unsupported_value"
    assert (words.status_code, subtitles.status_code) == (400, 400)


async def test_body_that_is_no_form_with_a_recording_is_refused(
    client: httpx2.AsyncClient,
) -> None:
    missing = await client.post(TRANSCRIPTIONS, data={"model": "m"}, files={"other": b"x"})
    as_json = await client.post(TRANSCRIPTIONS, json={"model": "m"})
    noise = await transcribe(client, b"no sound at all")
    empty = await transcribe(client, b"")

    assert missing.json()["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": "file",
        "code": "missing_required_parameter",
    }  # fmt: skip
    assert (missing.status_code, as_json.status_code) == (400, 415)
    assert (noise.status_code, noise.json()["error"]["code"]) == (400, "audio_unreadable")
    assert (empty.status_code, empty.json()["error"]["code"]) == (400, "audio_empty")


@pytest.mark.parametrize("form", list(SpeechFormat))
async def test_speech_in_every_format_is_what_was_said(
    client: httpx2.AsyncClient, speaker: FakeSpeaker, form: SpeechFormat
) -> None:
    text = "This is one sentence. And here comes another one, which is longer."

    spoken = await speak(client, input=text, voice="nova", response_format=form.value)

    assert spoken.status_code == 200, spoken.text
    assert spoken.headers["content-type"] == form.media_type
    assert "content-length" not in spoken.headers
    assert "".join(said for said, _ in speaker.said) == text.replace(" And", "And")
    said_samples = sum(len(said) * 24_000 // 50 for said, _ in speaker.said)
    if form is SpeechFormat.PCM:
        sound = np.frombuffer(spoken.content, "<i2")
    else:
        sound = sound_of(spoken.content)
    assert abs(len(sound) - said_samples) < 2600  # what encoders add at both ends
    middle = sound[5000:25_000].astype(float)
    peak = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))))
    assert abs(peak * 24_000 / len(middle) - 440) < 5


async def test_speech_of_another_rate_is_converted(
    client: httpx2.AsyncClient, speaker: FakeSpeaker
) -> None:
    speaker.sample_rate_hz = 22_050

    spoken = await speak(client, response_format="wav")

    assert abs(len(sound_of(spoken.content)) - 12 * 480) < 10


async def test_speech_as_events(client: httpx2.AsyncClient) -> None:
    spoken = await speak(client, stream_format="sse", response_format="pcm")
    plain = await speak(client, response_format="pcm")

    streamed = events(spoken)
    assert spoken.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert {event["type"] for event in streamed[:-1]} == {"speech.audio.delta"}
    sound = b"".join(b64decode(event["audio"]) for event in streamed[:-1])
    assert sound == plain.content
    assert streamed[-1] == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8},
    }


async def test_voice_and_speed_reach_the_provider(
    client: httpx2.AsyncClient, speaker: FakeSpeaker
) -> None:
    await client.post("/agents", json={"name": "Ada", "voice": "onyx"})

    await speak(client, voice={"id": "echo"}, speed=1.5, instructions="Softly.")
    await speak(client, model="agent-ada")
    await speak(client, model="agent-ada", voice="shimmer")

    assert [voice for _, voice in speaker.said] == ["echo", "onyx", "shimmer"]
    assert speaker.speeds == [1.5, 1, 1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": " \n"}, "input"),
        ({"input": "x" * 20_001}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"response_format": "ogg"}, "response_format"),
        ({"speed": 5}, "speed"),
        ({"stream_format": "ws"}, "stream_format"),
        ({"model": None}, "model"),
    ],
)
async def test_what_is_wrong_with_speech_is_said(
    client: httpx2.AsyncClient, speaker: FakeSpeaker, fields: dict[str, Any], param: str
) -> None:
    speaker.voices = frozenset(("alloy", "nova"))

    refused = await speak(client, **fields)

    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"].partition(".")[0] == param
    assert speaker.said == []


async def test_speed_of_a_speaker_without_speeds_is_refused(
    client: httpx2.AsyncClient, speaker: FakeSpeaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speaker, "has_speeds", False)

    refused = await speak(client, speed=2)

    assert refused.json()["error"]["param"] == "speed"
    assert (await speak(client, speed=1)).status_code == 200


async def test_long_text_is_spoken_in_pieces_that_the_provider_takes(
    client: httpx2.AsyncClient, speaker: FakeSpeaker
) -> None:
    text = "word " * 4000

    spoken = await speak(client, input=text[:20_000], response_format="opus")

    assert spoken.status_code == 200
    assert max(len(said) for said, _ in speaker.said) <= speaker.max_characters
    assert sum(said.count("word") for said, _ in speaker.said) == 4000


async def test_speech_begins_before_all_of_it_is_made(state: State, speaker: FakeSpeaker) -> None:
    counter, opened, first = itertools.count(), anyio.Event(), anyio.Event()

    async def wait() -> None:
        if next(counter):
            await opened.wait()

    async def on_sound(_piece: bytes) -> None:
        first.set()

    speaker.while_speaking = wait
    request = SpeechRequest("One sentence. Another one.", SpeechFormat.PCM)
    async with anyio.create_task_group() as group:
        group.start_soon(state["audio_requests"].speak, ADMIN, request, on_sound)
        with anyio.fail_after(60):
            await first.wait()
        assert len(speaker.said) == 2
        opened.set()


@pytest.mark.parametrize("path", [TRANSCRIPTIONS, SPEECH])
async def test_client_that_leaves_stops_the_provider_and_pays_for_what_was_asked(
    client: httpx2.AsyncClient,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
    speech: bytes,
    database: Database,
    path: str,
) -> None:
    arrived, stopped = anyio.Event(), anyio.Event()

    async def wait() -> None:
        arrived.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    transcriber.while_hearing = speaker.while_speaking = wait
    async with anyio.create_task_group() as group:
        if path == SPEECH:
            group.start_soon(speak, client)
        else:
            group.start_soon(transcribe, client, speech)
        await arrived.wait()
        group.cancel_scope.cancel()

    assert stopped.is_set()
    (row,) = (await client.get("/usage?group_by=")).json()
    used = row["speech_in_seconds"], row["speech_out_characters"]
    assert used == ((0, 12) if path == SPEECH else (3.45, 0))
    async with database.reading() as db:
        assert [row.live_turns for row in await db.scalars(select(Budget))] == [0]


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"limit_upload_minutes_per_day": 0.05}, "insufficient_quota"),
        ({"limit_usd_per_day": 0.0001}, "insufficient_quota"),
    ],
)
async def test_limits_of_the_day_hold_for_sound(
    second_server: StartServer,
    settings: Settings,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
    speech: bytes,
    limits: dict[str, float],
    code: str,
) -> None:
    async with (
        second_server(**limits) as state,
        client_of(settings.model_copy(update=limits), state) as client,
    ):
        spoken = await speak(client, input="A sentence that is not short.")
        refused = await transcribe(client, speech)

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, code)
    assert transcriber.recordings == []
    if "limit_usd_per_day" in limits:
        assert (spoken.status_code, spoken.json()["error"]["code"]) == (429, code)
        assert speaker.said == []
    else:
        assert spoken.status_code == 200


async def test_speech_that_breaks_off_ends_in_an_error(
    client: httpx2.AsyncClient, speaker: FakeSpeaker
) -> None:
    counter = itertools.count()

    async def fail() -> None:
        if next(counter):
            raise UpstreamIncomplete("It broke off.", retry_after_seconds=3600)

    speaker.while_speaking = fail
    two = "This is one sentence. This is another one."
    streamed = events(await speak(client, input=two, stream_format="sse", response_format="pcm"))
    counter = itertools.count()
    with pytest.raises(UpstreamIncomplete):
        await speak(client, input=two, response_format="pcm")
    counter = itertools.count(1)
    whole = await speak(client, input=two)

    assert streamed[0]["type"] == "speech.audio.delta"
    assert streamed[-1]["error"]["code"] == "upstream_incomplete"
    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "upstream_incomplete")


async def test_server_that_drains_takes_no_requests_for_sound(
    client: httpx2.AsyncClient, state: State, speech: bytes
) -> None:
    state["turns"].drain()

    answers = [await transcribe(client, speech), await speak(client)]

    assert [answer.status_code for answer in answers] == [503, 503]
    assert all(answer.json()["error"]["code"] == "server_draining" for answer in answers)

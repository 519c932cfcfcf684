"""Every way a provider can fail, end to end: the answer is right, or the turn failed and says so.

Each case is one turn on a server of its own. `FAULT_ROUNDS=20` runs all of them
twenty times, and every fault of every endpoint by every mouth.
"""

import logging
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import httpx2
import pytest

from app.core.config import Settings
from app.core.database import Database
from app.core.errors import ErrorKind
from app.services.ports import (
    FinishReason,
    ProviderError,
    ProviderTimeout,
    ToolCallsUnsupported,
)
from app.services.turns.context.prompt import DEFAULT_OUTPUT_TOKENS
from app.services.usage import CHARACTERS_PER_TOKEN
from tests.faults_provider.cases import (
    KEY,
    TEXT,
    Case,
    Mouth,
    Seen,
    client_of,
    make_app,
    own_database,
    see_all,
    served,
)
from tests.support.provider import PROVIDER_WORDS, Fault, Provider
from tests.support.provider_faults import Planted
from tests.support.sse import text_of
from tests.test_openai_service import (
    CHAT_FAILURES,
    CHAT_SURVIVED,
    ONLY_REALTIME,
    REFUSALS,
    REPLACED,
    SPEECH_FAILURES,
)
from tests.test_realtime_speaker import FAILURES as REALTIME_FAILURES

pytestmark = pytest.mark.timeout(900)  # what comes first waits for all the turns of the module

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))

TEXT_MOUTHS = (Mouth.JSON, Mouth.EVENTS)
VOICE_MOUTHS = (Mouth.MP3, Mouth.SPOKEN_EVENTS)
TRANSCRIPTION_FAILURES = REFUSALS | {
    Fault.TRUNCATED_JSON: CHAT_FAILURES[Fault.TRUNCATED_JSON],
    Fault.CONTENT_LENGTH_LIE: SPEECH_FAILURES[Fault.CONTENT_LENGTH_LIE],
}
NO_WEBSOCKET = {Fault.STATUS_403, Fault.STATUS_404}
"""Another endpoint speaks instead."""
FAILURES: dict[str, dict[Fault, type[ProviderError]]] = {
    "chat": {
        fault: failure for fault, failure in CHAT_FAILURES.items() if fault is not Fault.ENDLESS
    }
    | {Fault.ONLY_TOOL_CALLS: ToolCallsUnsupported},
    "transcription": TRANSCRIPTION_FAILURES,
    "speech": SPEECH_FAILURES,
    "realtime": {
        fault: failure for fault, failure in REALTIME_FAILURES.items() if fault not in NO_WEBSOCKET
    },
}
SURVIVED: dict[str, set[Fault]] = {
    "chat": {*CHAT_SURVIVED, Fault.ENDLESS},
    "transcription": {Fault.PACKED, Fault.BYTE_BY_BYTE},
    "speech": {Fault.WAV, Fault.WAV_OTHER_RATE, Fault.ODD_BYTES, Fault.PACKED, Fault.BYTE_BY_BYTE},
    "realtime": {Fault.REWORDED, *NO_WEBSOCKET},
}
ENDLESS_IS_CUT = ("x" * DEFAULT_OUTPUT_TOKENS * CHARACTERS_PER_TOKEN, FinishReason.LENGTH, False)
"""At the limit that was sent to the provider and that it ignores."""
AFTER_THE_FIRST_TOKEN = {
    Fault.TRUNCATED_JSON,
    Fault.IGNORES_STREAM_NO_FINISH,
    Fault.FINISH_ERROR,
    Fault.FINISH_UNKNOWN,
    Fault.NO_FINISH,
    Fault.DONE_WITHOUT_FINISH,
    Fault.ENDLESS,
}
"""In chat these come when text has left already."""
AT_THE_START = {Fault.CUT_AT_BYTE: 2, Fault.RESET_AT_TOKEN: 1, Fault.STALL_AT_TOKEN: 1}
"""Where to plant a fault so that no token has left; at 0 where it is not named."""
STATUS = {ErrorKind.UPSTREAM: 502, ErrorKind.UNAVAILABLE: 503, ErrorKind.TIMEOUT: 504}


def lasting(endpoint: str, faults: Iterable[Fault]) -> list[Case]:
    """The fault for ever, by each mouth that the endpoint has."""
    mouths = TEXT_MOUTHS if endpoint == "chat" else VOICE_MOUTHS
    return [Case(fault, mouth, endpoint) for fault in faults for mouth in mouths]


def transient(endpoint: str, failures: dict[Fault, type[ProviderError]]) -> list[Case]:
    """The fault once, before anything left, where it is worth another try."""
    is_chat = endpoint == "chat"
    return [
        Case(fault, mouth, endpoint, times=1, at=AT_THE_START.get(fault, 0) if is_chat else 0)
        for fault, failure in failures.items()
        if is_repeated(failure) and fault not in (AFTER_THE_FIRST_TOKEN if is_chat else NEVER_AGAIN)
        for mouth in (TEXT_MOUTHS if is_chat else VOICE_MOUTHS)
    ]


def is_repeated(failure: type[ProviderError]) -> bool:
    """Tell whether the server asks again by itself: not where the provider was still at work."""
    return failure.retryable and failure is not ProviderTimeout


NEVER_AGAIN = {Fault.ENDLESS, Fault.CONTENT_LENGTH_LIE, Fault.NO_FINISH, Fault.RESPONSE_INCOMPLETE}
"""In speech these come when sound has left already."""


def chosen(cases: list[Case]) -> list[Case]:
    """All in the full form. In the short one, less of what other cases prove, too.

    A transient fault then comes by one mouth in turn, and one in four of the faults that chat
    has as well is heard by voice.
    """
    if ROUNDS > 1:
        return cases
    in_chat = set(CHAT_FAILURES) | set(CHAT_SURVIVED)
    return [
        case
        for index, case in enumerate(cases)
        if (case.endpoint == "chat" and (case.times is None or index % 4 in {0, 3}))
        or (case.endpoint != "chat" and (case.fault not in in_chat or index % 8 in {0, 5}))
    ]


FAILING = chosen([case for name in FAILURES for case in lasting(name, FAILURES[name])])
SURVIVING = chosen([case for name in SURVIVED for case in lasting(name, sorted(SURVIVED[name]))])
PASSING = chosen([case for name in FAILURES for case in transient(name, FAILURES[name])])


def name(case: Case) -> str:
    return f"{case.endpoint}-{case.fault}-{case.mouth}"


@pytest.fixture(scope="module")
def log_lines() -> Iterator[list[str]]:
    """What an operator reads."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    keep = Keep(logging.INFO)
    logging.getLogger().addHandler(keep)
    yield lines
    logging.getLogger().removeHandler(keep)


@pytest.fixture(scope="module")
def seen(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, log_lines: list[str]
) -> dict[Case, Seen]:
    del log_lines  # listens
    cases = [
        replace(case, round=number)
        for case in (*FAILING, *SURVIVING, *PASSING)
        for number in range(ROUNDS)
    ]
    return see_all(cases, sqlite_template, tmp_path_factory.mktemp("lanes"))


def each_round(case: Case, seen: dict[Case, Seen]) -> list[Seen]:
    return [seen[replace(case, round=number)] for number in range(ROUNDS)]


def assert_the_turn_is_over_and_nothing_leaked(turn: Seen) -> None:
    assert turn.leaked == []
    assert turn.is_replayed_alike
    assert turn.status != 500
    assert [event.id for event in turn.events] == list(range(1, len(turn.events) + 1))
    terminal = [event.type for event in turn.events if event.type.startswith("turn.")][2:]
    assert terminal == [f"turn.{turn.turn['status']}"]
    assert turn.events[-1].type == terminal[0]
    assert "in_progress" not in {message["status"] for message in turn.messages}
    assert turn.next_answer == TEXT


def test_every_fault_of_the_provider_is_tried() -> None:
    tried = {case.fault for case in (*FAILING, *SURVIVING)}
    assert tried == set(Fault)
    assert {case.mouth for case in FAILING} == set(Mouth)
    assert set(REALTIME_FAILURES) >= ONLY_REALTIME - {Fault.REWORDED}


@pytest.mark.parametrize("case", FAILING, ids=name)
def test_lasting_fault_fails_the_turn_with_its_documented_code(
    case: Case, seen: dict[Case, Seen]
) -> None:
    failure = FAILURES[case.endpoint][case.fault]
    for turn in each_round(case, seen):
        assert_the_turn_is_over_and_nothing_leaked(turn)
        assert turn.turn["status"] == "failed"
        assert turn.turn["error"]["code"] == failure.code
        assert turn.events[-1].data["error"]["code"] == failure.code
        assert turn.events[-1].data["retryable"] is failure.retryable
        if turn.problem:
            assert turn.status == turn.problem["status"] == STATUS[failure.kind]
            assert turn.problem["code"] == failure.code
            assert turn.problem["turn_id"] == turn.turn["id"]
        else:
            assert turn.status == 200
            assert case.mouth is not Mouth.JSON
        question, answer = turn.messages
        match case.endpoint:
            case "chat":
                assert question["status"] == "completed"
                assert_broken_off(turn, answer, failure)
            case "transcription":
                assert (question["status"], answer["status"]) == ("failed", "failed")
                assert question["content"] == answer["content"] == ""
            case _:  # the written answer is whole, only its sound is not
                assert (answer["status"], answer["content"]) == ("completed", TEXT)


def assert_broken_off(turn: Seen, answer: dict[str, object], failure: type[ProviderError]) -> None:
    """The text that came is kept, marked, shown to followers alike, and to no model again."""
    content = str(answer["content"])
    assert answer["status"] == "failed"
    assert TEXT.startswith(content) or set(content) == {"x"}
    assert text_of(turn.events) == content
    assert turn.request_count == (3 if is_repeated(failure) and not content else 1)
    assert turn.next_prompt == ["You are a helpful assistant.", "Hi\n\nAnd now?"]


@pytest.mark.parametrize("case", SURVIVING, ids=name)
def test_odd_answer_is_read_right(case: Case, seen: dict[Case, Seen]) -> None:
    read = CHAT_SURVIVED | {Fault.ENDLESS: ENDLESS_IS_CUT}
    expected = read.get(case.fault) if case.endpoint == "chat" else None
    text, reason, are_counted = expected or (TEXT, FinishReason.STOP, True)
    for turn in each_round(case, seen):
        assert_the_turn_is_over_and_nothing_leaked(turn)
        assert turn.status == 200
        assert turn.turn["status"] == "completed"
        assert turn.turn["finish_reason"] == reason.value
        answer = turn.messages[1]
        assert answer["content"] == text_of(turn.events) == text
        assert answer["status"] == ("truncated" if reason is FinishReason.LENGTH else "completed")
        usage = turn.turn["usage"]
        assert usage["estimated"] is not are_counted
        assert usage["completion_tokens"] > 0


def test_single_fault_before_the_first_token_is_seen_by_nobody(seen: dict[Case, Seen]) -> None:
    turns = {
        (case, number): turn
        for case in PASSING
        for number, turn in enumerate(each_round(case, seen))
    }
    visible = [
        f"{name(case)}: {turn.status} {turn.problem.get('code')} {turn.turn['error']}"
        for (case, _), turn in turns.items()
        if not (
            turn.status == 200
            and turn.turn["status"] == "completed"
            and turn.messages[1]["content"] == TEXT
        )
    ]
    share = 1 - len(visible) / len(turns)
    seconds = sorted(turn.seconds for turn in turns.values())
    print(  # noqa: T201  # the figure is the point
        f"\n{share:.2%} of {len(turns)} turns with one fault were answered; "
        f"median {seconds[len(seconds) // 2]:.2f} s, slowest {seconds[-1]:.2f} s"
    )
    assert share >= 0.995, visible
    for turn in turns.values():
        assert_the_turn_is_over_and_nothing_leaked(turn)
        assert "turn.failed" not in {event.type for event in turn.events}
        assert turn.turn["attempt"] == 1


def test_log_has_neither_keys_nor_the_providers_words(
    seen: dict[Case, Seen], log_lines: list[str]
) -> None:
    assert seen
    assert [line for line in log_lines if KEY in line or PROVIDER_WORDS in line] == []


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.chat.text = TEXT
        yield provider


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [Fault.LONE_SURROGATES, Fault.NUL, Fault.INVALID_UTF8])
async def test_what_no_database_stores_is_replaced_on_both(
    fault: Fault, settings: Settings, database: Database, provider: Provider
) -> None:
    provider.fail(fault)
    async with (
        served(settings, database, provider) as state,
        client_of(make_app(settings), state) as client,
    ):
        [session_id] = await open_sessions(client, 1)
        answer = (await say(client, session_id)).json()
        stored = (await client.get(f"/turns/{answer['turn_id']}")).json()["message"]

    assert stored["content"] == answer["content"] == REPLACED


@pytest.mark.anyio
async def test_wait_that_is_too_long_is_passed_on_instead(
    settings: Settings, database: Database, provider: Provider
) -> None:
    provider.planted.append(Planted(Fault.STATUS_429_SECONDS, "chat", None, retry_after_seconds=99))
    async with (
        served(settings, database, provider) as state,
        client_of(make_app(settings), state) as client,
    ):
        [session_id] = await open_sessions(client, 1)
        refused = await say(client, session_id)

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "99"
    assert len(provider.to("chat")) == 1


BREAKING = (Fault.RESET_BEFORE_HEADERS, Fault.STATUS_500)


@asynccontextmanager
async def broken(
    fault: Fault, template: Path, folder: Path
) -> AsyncGenerator[tuple[Provider, httpx2.AsyncClient, list[str]]]:
    """Yield a provider, a client and ten sessions; the breaker has just opened."""
    async with own_database(template, folder) as (settings, database):
        with Provider() as provider:
            provider.fail(fault, times=None)
            async with (
                served(settings, database, provider, patience_seconds=3) as state,
                client_of(make_app(settings), state) as client,
            ):
                sessions = await open_sessions(client, 10)
                while len(provider.to("chat")) < 5:
                    assert (await say(client, sessions[0])).status_code in {502, 503, 504}
                yield provider, client, sessions


@pytest.mark.anyio
async def test_breaker_opens_after_five_failures_and_one_probe_closes_it(
    sqlite_template: Path, tmp_path: Path
) -> None:
    async def break_and_mend(fault: Fault) -> None:
        async with broken(fault, sqlite_template, tmp_path / fault) as (provider, client, sessions):
            closes_at = time.monotonic() + 5.1
            for session_id in sessions:
                response = await say(client, session_id)
                assert response.status_code == 503
                assert response.json()["code"] == "provider-unavailable"
                assert 1 <= int(response.headers["retry-after"]) <= 5
            assert len(provider.to("chat")) == 5, "an open breaker let something through"

            provider.reset()
            provider.chat.text = TEXT
            provider.chat.first_byte_delay_seconds = 1.5
            await anyio.sleep(closes_at - time.monotonic())
            answers = await say_at_once(client, sessions)
            assert sorted(response.status_code for response in answers) == [200] + [503] * 9
            assert len(provider.to("chat")) == 1

            answers = await say_at_once(client, sessions)
            assert {response.status_code for response in answers} == {200}

    async with anyio.create_task_group() as group:
        for fault in BREAKING:
            group.start_soon(break_and_mend, fault)


@pytest.mark.anyio
async def test_open_breaker_answers_at_once_and_a_failing_probe_leaves_it_open(
    sqlite_template: Path, tmp_path: Path
) -> None:
    fault = Fault.STATUS_500
    refused: list[float] = []
    async with broken(fault, sqlite_template, tmp_path / fault) as (provider, client, sessions):
        closes_at = time.monotonic() + 5.1
        for session_id in sessions:
            asked_at = time.monotonic()
            assert (await say(client, session_id)).status_code == 503
            refused.append(time.monotonic() - asked_at)
        await anyio.sleep(closes_at - time.monotonic())
        answers = await say_at_once(client, sessions)
        again = await say(client, sessions[0])

    assert {response.status_code for response in answers} == {again.status_code} == {503}
    assert len(provider.to("chat")) == 6
    refused.sort()
    middle, slowest = refused[len(refused) // 2] * 1000, refused[-1] * 1000
    print(f"\nopen breaker: median {middle:.0f} ms, slowest {slowest:.0f} ms")  # noqa: T201  # the figure is the point
    assert middle < 1000  # no pause of a retry, on a busy machine too


async def open_sessions(client: httpx2.AsyncClient, count: int) -> list[str]:
    agent = (await client.post("/agents", json={"name": "Ada"})).json()
    body = {"agent_id": agent["id"]}
    return [(await client.post("/sessions", json=body)).json()["id"] for _ in range(count)]


async def say(client: httpx2.AsyncClient, session_id: str) -> httpx2.Response:
    body = {"session_id": session_id, "content": "Hi"}
    return await client.post("/messages/text", json=body)


async def say_at_once(client: httpx2.AsyncClient, sessions: list[str]) -> list[httpx2.Response]:
    answers: list[httpx2.Response] = []

    async def say_one(session_id: str) -> None:
        answers.append(await say(client, session_id))

    async with anyio.create_task_group() as group:
        for session_id in sessions:
            group.start_soon(say_one, session_id)
    return answers

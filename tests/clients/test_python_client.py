"""The Python client, against a real server: what everybody would have to write, and get wrong."""

import re
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from itertools import pairwise

import pytest
from agent_platform_client import (
    AgentPlatform,
    ApiError,
    AsyncAgentPlatform,
    AuthenticationFailed,
    ConnectionLost,
    InvalidRequest,
    NotFound,
    RateLimited,
    ServerUnavailable,
    TurnFailed,
)
from agent_platform_client._protocol import Call, EventParser, TurnProgress, retry_after
from agent_platform_client.types import TurnEvent

from tests.support.application import AUDIO
from tests.support.cutting_proxy import CuttingProxy
from tests.support.planted_secrets import ADMIN_KEY
from tests.support.provider import Fault, Provider
from tests.support.server_process import ServerProcess

WORDS = "one two three four five six seven eight nine ten eleven twelve Grüße 🎈"
UNAVAILABLE = (
    b"HTTP/1.1 %s\r\nRetry-After: %s\r\nContent-Type: application/problem+json\r\n"
    b'Content-Length: 41\r\n\r\n{"code": "server-busy", "detail": "Busy"}'
)
PROXY_PAGE = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<html"
)


@pytest.fixture
def client(proxy: CuttingProxy, provider: Provider) -> Iterator[AgentPlatform]:
    """A client whose connections go through the proxy."""
    provider.chat.text = WORDS
    with AgentPlatform(proxy.url, ADMIN_KEY, retry_seconds=30) as client:
        yield client


@pytest.fixture
def session_id(server: ServerProcess) -> str:
    with AgentPlatform(server.url) as direct:
        agent = direct.create_agent(name="Ada", system_prompt="Answer briefly.")
        return direct.create_session(agent_id=agent["id"])["id"]


def numbers_rise(events: list[TurnEvent]) -> bool:
    return all(first["number"] < second["number"] for first, second in pairwise(events))


def deltas(events: list[TurnEvent]) -> str:
    return "".join(e["data"]["delta"] for e in events if e["type"] == "output_text.delta")


def test_document_is_uploaded_sent_and_deleted(client: AgentPlatform) -> None:
    session_id = client.create_session(agent_id=client.create_agent(name="Ada")["id"])["id"]
    used, unused = client.upload_file(b"Some words", "a.txt"), client.upload_file(b"More", "b.md")

    reply = client.send_text(session_id, [{"type": "file", "file_id": used["id"]}])
    client.delete_file(unused["id"])

    assert reply["content"] == WORDS
    assert (used["name"], used["media_type"]) == ("a.txt", "text/plain")
    with pytest.raises(ApiError, match="uses the file"):
        client.delete_file(used["id"])


def test_conversation_with_pages_changes_and_usage(client: AgentPlatform) -> None:
    agent = client.create_agent(name="Ada", system_prompt="Be short.")
    changed = client.update_agent(agent["id"], voice="nova")
    history: list[dict[str, str]] = [{"role": "user", "content": f"{n}"} for n in range(150)]
    session = client.create_session(agent_id=agent["id"], messages=history, metadata={"plan": "a"})  # pyright: ignore[reportArgumentType]  # plain dictionaries

    reply = client.send_text(session["id"], "Where are you?")

    assert (changed["name"], changed["voice"]) == ("Ada", "nova")
    assert (reply["content"], reply["seq"], reply["status"]) == (WORDS, 152, "completed")
    assert reply["usage"]["prompt_tokens"]
    assert reply["timings"]["total_ms"] > 0
    assert [m["seq"] for m in client.list_messages(session["id"])] == list(range(1, 153))
    found = client.list_sessions(agent_id=agent["id"], metadata={"plan": "a"})
    assert [each["id"] for each in found] == [session["id"]]
    fork = client.fork_session(session["id"], up_to_seq=2)
    assert client.update_session(fork["id"], title="Copy")["title"] == "Copy"
    assert [turn["status"] for turn in client.list_turns(session_id=session["id"])] == ["completed"]
    assert client.request("GET", "/health") == {"status": "ok"}
    assert client.rate_limit
    assert client.rate_limit.limit > 0
    client.delete_session(fork["id"])
    with pytest.raises(NotFound) as missing:
        client.get_session(fork["id"])
    assert (missing.value.code, missing.value.status) == ("session-not-found", 404)


@pytest.mark.parametrize("cuts", [[0, 0], [200, 500, 900], [900] * 4, [1100, 0, 1300]])
def test_stream_goes_on_where_it_was_cut(
    client: AgentPlatform, proxy: CuttingProxy, provider: Provider, session_id: str, cuts: list[int]
) -> None:
    provider.chat.token_delay_seconds = 0.02
    proxy.cuts = [*cuts]

    with client.stream_text(session_id, "Count.") as stream:
        events = list(stream)

    assert (deltas(events), stream.text) == (WORDS, WORDS)
    assert numbers_rise(events)
    assert [event["type"] for event in events][:2] == ["turn.created", "turn.in_progress"]
    assert events[-1]["type"] == "turn.completed"
    assert proxy.connections > len(cuts) - len(proxy.cuts) > 0
    assert len(provider.to("chat")) == 1
    assert len(client.get_session(session_id)["messages"] or ()) == 2


@pytest.mark.anyio
async def test_asynchronous_client_does_the_same(
    proxy: CuttingProxy, provider: Provider, session_id: str
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.02
    proxy.cuts = [600, 900]
    async with AsyncAgentPlatform(proxy.url) as client:
        async with client.stream_text(session_id, "Count.") as stream:
            events = [event async for event in stream]
        history = [message async for message in client.list_messages(session_id)]
        turn = await client.wait_turn(stream.turn_id or "")

    assert (deltas(events), stream.text) == (WORDS, WORDS)
    assert numbers_rise(events)
    assert [message["content"] for message in history] == ["Count.", WORDS]
    assert turn["message"]["content"] == WORDS
    assert proxy.cuts == []


def test_turn_that_dies_with_its_server_is_followed_to_its_end(
    mortal_server: ServerProcess, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.1
    with AgentPlatform(mortal_server.url, retry_seconds=60) as client:
        agent = client.create_agent(name="Ada")
        session = client.create_session(agent_id=agent["id"])
        events: list[TurnEvent] = []
        with client.stream_text(session["id"], "Count.") as stream:
            for event in stream:
                events.append(event)
                if len(events) == 5:
                    mortal_server.kill()
                    provider.chat.token_delay_seconds = 0
                    threading.Thread(target=mortal_server.start).start()
        messages = client.get_session(session["id"])["messages"]

    assert stream.text == WORDS
    assert numbers_rise(events)
    assert [e["data"]["attempt"] for e in events if e["type"] == "turn.in_progress"] == [1, 2]
    assert [message["content"] for message in messages or ()] == ["Count.", WORDS]


@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"503 Service Unavailable"])
def test_refusal_is_waited_for_as_long_as_it_says(
    client: AgentPlatform, proxy: CuttingProxy, session_id: str, status: bytes
) -> None:
    proxy.refusals = [UNAVAILABLE % (status, b"1")]
    began = time.monotonic()

    reply = client.send_text(session_id, "Hi")

    assert reply["content"] == WORDS
    assert time.monotonic() - began >= 1
    assert len(client.get_session(session_id)["messages"] or ()) == 2


def test_refusal_that_would_last_too_long_is_raised_at_once(
    client: AgentPlatform, proxy: CuttingProxy
) -> None:
    proxy.refusals = [
        UNAVAILABLE % (b"429 Too Many Requests", b"3600"),
        UNAVAILABLE % (b"503 Service Unavailable", formatdate(time.time() + 9000).encode()),
    ]

    with pytest.raises(RateLimited) as limited:
        list(client.list_agents())
    with pytest.raises(ServerUnavailable) as unavailable:
        list(client.list_agents())

    assert (limited.value.code, limited.value.retry_after_seconds) == ("server-busy", 3600)
    assert 8000 < (unavailable.value.retry_after_seconds or 0) <= 9000


def test_page_of_a_proxy_whose_server_is_away_is_waited_for(
    client: AgentPlatform, proxy: CuttingProxy, session_id: str
) -> None:
    proxy.refusals = [PROXY_PAGE, PROXY_PAGE]

    assert client.send_text(session_id, "Hi")["content"] == WORDS


def test_wrong_key_and_wrong_request_are_not_repeated(
    client: AgentPlatform, proxy: CuttingProxy, session_id: str
) -> None:
    with (
        AgentPlatform(proxy.url, "ap_wrong") as stranger,
        pytest.raises(AuthenticationFailed) as refused,
    ):
        stranger.send_text(session_id, "Hi")
    with pytest.raises(InvalidRequest) as invalid:
        client.send_text(session_id, "  ")

    assert refused.value.code == "unauthenticated"
    assert refused.value.request_id
    assert invalid.value.errors[0]["loc"] == ["body", "content"]
    assert proxy.connections == 2


def test_cancelled_turn_ends_its_stream(
    client: AgentPlatform, provider: Provider, session_id: str
) -> None:
    provider.chat.token_delay_seconds = 0.2
    types: list[str] = []

    with client.stream_text(session_id, "Count.") as stream:
        for event in stream:
            if event["type"] == "output_text.delta" and "output_text.delta" not in types:
                cancelled = stream.cancel()
                assert cancelled
                assert cancelled["status"] == "cancelled"
            types.append(event["type"])

    assert types[-1] == "turn.cancelled"
    assert stream.text
    assert WORDS.startswith(stream.text)


def test_turn_in_the_background_is_waited_for_over_lost_connections(
    client: AgentPlatform, proxy: CuttingProxy, provider: Provider, session_id: str
) -> None:
    provider.chat.token_delay_seconds = 0.05
    proxy.cuts = [0]

    begun = client.start_text(session_id, "Count.")
    proxy.cuts = [0, 100]
    turn = client.wait_turn(begun["id"])

    assert begun["status"] == "in_progress"
    assert (turn["status"], turn["message"]["content"]) == ("completed", WORDS)
    assert len(provider.to("chat")) == 1


def test_recording_is_answered_with_sound_also_over_cut_connections(
    client: AgentPlatform, proxy: CuttingProxy, provider: Provider, session_id: str
) -> None:
    provider.chat.text = "The weather is fine today. It will rain tomorrow."
    proxy.cuts = [2_000, 9_000, 3_000]

    spoken = client.send_voice(session_id, (AUDIO / "anna_01.wav").read_bytes())

    assert spoken.transcript == provider.transcription.text
    assert spoken.reply["content"] == provider.chat.text
    assert spoken.mp3 == client.get_turn_audio(spoken.turn_id)
    assert len(spoken.mp3) > 5_000
    assert (len(provider.to("transcription")), len(provider.to("chat"))) == (1, 1)
    clips = [e for e in client.follow_turn(spoken.turn_id) if e["type"] == "audio.clip"]
    assert [clip["data"]["text"] for clip in clips] == [
        "The weather is fine today.", "It will rain tomorrow."
    ]  # fmt: skip


def test_tool_of_the_client_is_answered_within_the_stream(
    client: AgentPlatform, proxy: CuttingProxy, provider: Provider, session_id: str
) -> None:
    parameters = {"type": "object", "properties": {"of": {"type": "string"}}}
    names = {"name": "color", "description": "The color of a thing.", "kind": "client"}
    made = client.request("POST", "/tools", json={**names, "parameters": parameters})
    agent_id = client.get_session(session_id)["agent_id"]
    client.update_agent(agent_id, tools=[{"tool_id": made["id"]}])
    provider.chat.calls = [("color", '{"of": "sky"}')]
    proxy.cuts = [700, 900]
    asked: list[str] = []

    with client.stream_text(session_id, "Which color?") as stream:
        for event in stream:
            if event["type"] == "turn.requires_action":
                provider.chat.calls = []
                for action in event["data"]["actions"]:
                    asked.append(action["arguments"])
                    client.resolve_tool_call(action["call_id"], output="blue")

    assert asked == ['{"of": "sky"}']
    assert stream.text.endswith(WORDS)
    shown = provider.to("chat")[-1].body["messages"]
    assert [line["content"] for line in shown if line["role"] == "tool"] == ["blue"]


def test_failed_turn_says_why_and_is_run_again_with_its_key(
    client: AgentPlatform, provider: Provider, session_id: str
) -> None:
    provider.fail(Fault.STATUS_400, "chat")

    with pytest.raises(TurnFailed) as failed:
        client.send_text(session_id, "Hi")

    assert failed.value.code == "provider-rejected"
    assert client.get_turn(failed.value.turn_id)["status"] == "failed"
    assert client.send_text(session_id, "Hi")["content"] == WORDS


def test_the_same_key_is_the_same_turn(
    client: AgentPlatform, provider: Provider, session_id: str
) -> None:
    first = client.send_text(session_id, "Hi", idempotency_key="order-66")
    again = client.send_text(session_id, "Hi", idempotency_key="order-66")

    assert first["id"] == again["id"]
    assert len(provider.to("chat")) == 1


def test_deletion_whose_answer_was_lost_is_done(
    client: AgentPlatform, proxy: CuttingProxy, session_id: str
) -> None:
    proxy.cuts = [3]

    client.delete_session(session_id)

    with pytest.raises(NotFound):
        client.delete_session(session_id)


def test_what_may_not_be_done_twice_is_not_sent_twice(
    client: AgentPlatform, proxy: CuttingProxy, session_id: str
) -> None:
    proxy.cuts = [0]

    with pytest.raises(ConnectionLost):
        client.create_session_token(session_id)

    assert proxy.connections == 1
    token = client.create_session_token(session_id)["token"]
    with AgentPlatform(proxy.url, token) as browser:
        assert browser.send_text(session_id, "Hi")["content"] == WORDS


def test_server_that_stays_away_is_given_up() -> None:
    nobody = AgentPlatform("http://127.0.0.1:9", retry_seconds=0.5)
    with nobody, pytest.raises(ConnectionLost):
        nobody.get_agent("01900000-0000-7000-8000-000000000001")


def test_turn_of_the_past_is_followed_to_its_outcome(
    client: AgentPlatform, session_id: str
) -> None:
    with client.stream_text(session_id, "Hi") as stream:
        events = list(stream)

    again = list(client.follow_turn(stream.turn_id or "", after=events[1]["number"]))
    beyond = client.follow_turn(stream.turn_id or "", after=stream.last_number)
    outcome = list(beyond)

    assert again == events[2:]
    assert [event["type"] for event in outcome] == ["turn.completed"]
    assert beyond.final_reply()["content"] == WORDS


def test_events_are_read_from_pieces_of_any_size() -> None:
    stream = (
        ': ping\n\nid: 1\nevent: output_text.delta\ndata: {"delta":"Grüße 🎈"}\n\n'
        'event: server.draining\ndata: {}\n\nid: 2\nevent: output_text.delta\ndata: {"del'
    ).encode()
    for size in (1, 2, 7, 1000):
        parser = EventParser()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        events = [event for piece in pieces for event in parser.feed(piece)]

        assert [event["number"] for event in events] == [1, 0]
        assert events[0]["data"] == {"delta": "Grüße 🎈"}


def test_events_of_newer_servers_are_passed_on() -> None:
    progress = TurnProgress(Call("POST", "/messages/text"))
    (event,) = EventParser().feed(b"id: 7\nevent: tool_call.created\ndata: {}\n\n")

    assert progress.take(event)
    assert not progress.take(event)
    assert progress.last_number == 7


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3), ("0.5", 0.5), ("-1", 0), ("soon", None), ("", None)]
)
def test_retry_after_is_read(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_every_module_says_what_it_is() -> None:
    import agent_platform_client

    assert re.match(r"A client of Agent Platform", agent_platform_client.__doc__ or "")

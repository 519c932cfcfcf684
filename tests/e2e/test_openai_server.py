"""The whole server on a provider that speaks OpenAI's wire format, over real sockets."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pytest

from tests.embedded.recordings import converted
from tests.support.application import AUDIO
from tests.support.planted_secrets import PROVIDER_KEY as KEY
from tests.support.provider import Fault, Provider
from tests.support.server_process import ServerProcess, open_session


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(
        folder, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=provider.base_url, TTS_MODEL="tts-test"
    ) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess, provider: Provider) -> Iterator[httpx2.Client]:
    provider.reset()
    with server.client() as client:
        yield client


def speak(client: httpx2.Client, session_id: str, data: bytes) -> httpx2.Response:
    return client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.bin", data)}
    )


def test_text_turn_goes_to_the_provider_with_key_and_model(
    client: httpx2.Client, provider: Provider
) -> None:
    session_id = open_session(client, temperature=0.5, max_output_tokens=50)

    reply = client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    assert reply.status_code == 200
    (received,) = provider.to("chat")
    assert received.headers["Authorization"] == f"Bearer {KEY}"
    assert received.body["model"] == "gpt-6-luna"
    assert received.body["temperature"] == 0.5
    assert received.body["messages"][-1] == {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("kind", ["wav", "mp3", "m4a", "webm", "ogg", "flac"])
def test_recording_in_each_format_is_answered_with_sound(
    client: httpx2.Client, provider: Provider, kind: str
) -> None:
    session_id = open_session(client)
    recording = converted("anna_01", kind)

    response = speak(client, session_id, recording.data)

    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "audio/mpeg"
    assert len(response.content) > 1000
    assert len(provider.to("transcription")) == len(provider.to("chat")) == 1
    history = client.get(f"/sessions/{session_id}").json()["messages"]
    assert [message["modality"] for message in history] == ["voice", "voice"]
    assert history[0]["content"] == unquote(response.headers["x-transcription"])


@pytest.mark.parametrize(
    "words", ["你好，世界", "naïve 🎈 100%", "two\nlines\r\nand a tab\t.", "plain English"]
)
def test_transcription_survives_its_header(
    client: httpx2.Client, provider: Provider, words: str
) -> None:
    provider.transcription.text = words
    session_id = open_session(client)

    response = speak(client, session_id, (AUDIO / "anna_01.wav").read_bytes())

    assert unquote(response.headers["x-transcription"]) == words
    assert response.headers["x-transcription"].isascii()
    history = client.get(f"/sessions/{session_id}").json()["messages"]
    assert history[0]["content"] == words


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "audio-empty"),
        (b"hello", "audio-unreadable"),
        (b"<html>no sound</html>" * 50, "audio-unreadable"),
    ],
)
def test_recording_that_is_none_is_refused_before_anything_is_paid_or_stored(
    client: httpx2.Client, provider: Provider, data: bytes, code: str
) -> None:
    session_id = open_session(client)

    response = speak(client, session_id, data)

    assert response.status_code == 422
    assert response.json()["code"] == code
    assert provider.to("transcription") == []
    assert client.get(f"/sessions/{session_id}").json()["messages"] == []


def test_failing_speech_is_a_problem_document_and_the_answer_is_kept(
    client: httpx2.Client, provider: Provider
) -> None:
    provider.fail(Fault.STATUS_400, "speech", times=10)
    session_id = open_session(client)

    response = speak(client, session_id, (AUDIO / "anna_01.wav").read_bytes())

    assert response.status_code == 502
    assert response.json()["code"] == "provider-rejected"
    turn = client.get(f"/turns/{response.json()['turn_id']}").json()
    assert turn["status"] == "failed"
    assert turn["message"]["status"] == "completed"
    assert turn["message"]["content"]


def test_providers_words_and_the_key_are_nowhere(
    client: httpx2.Client, provider: Provider, server: ServerProcess
) -> None:
    provider.fail(Fault.STATUS_401, "chat", times=3)
    session_id = open_session(client)

    response = client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    assert response.json()["code"] == "provider-unauthorized"
    assert "OPENAI_API_KEY" in response.json()["detail"]
    for text in (response.text, server.log(), client.get(f"/sessions/{session_id}").text):
        assert KEY not in text


def test_killed_server_finishes_its_turn_at_the_next_start(
    tmp_path: Path, provider: Provider
) -> None:
    provider.reset()
    provider.fail(Fault.STALL_BEFORE_HEADERS, "chat", times=1)
    server = ServerProcess(tmp_path, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=provider.base_url)
    with server:
        with server.client() as client:
            session_id = open_session(client)

            def send() -> None:
                try:
                    with server.client() as sender:
                        body = {"session_id": session_id, "content": "Hi"}
                        sender.post("/messages/text", json=body)
                except httpx2.TransportError:
                    pass

            sending = threading.Thread(target=send)
            sending.start()
            assert provider.wait_until(lambda: len(provider.to("chat")) == 1)
            server.kill()
            sending.join()

        server.start()

        with server.client() as client:
            assert provider.wait_until(lambda: len(provider.to("chat")) == 2)
            url = f"/sessions/{session_id}"
            assert provider.wait_until(
                lambda: client.get(url).json()["messages"][1]["status"] == "completed"
            )


def test_server_ends_within_its_time_and_finishes_what_it_accepted(
    tmp_path: Path, provider: Provider
) -> None:
    provider.reset()
    provider.chat.token_delay_seconds = 0.1
    provider.chat.text = "one two three four five six"
    server = ServerProcess(tmp_path, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=provider.base_url)
    answers: list[int] = []
    with server:
        with server.client() as client:
            session_id = open_session(client)

        def send() -> None:
            with server.client() as sender:
                body = {"session_id": session_id, "content": "Hi"}
                answers.append(sender.post("/messages/text", json=body).status_code)

        sending = threading.Thread(target=send)
        sending.start()
        assert provider.wait_until(lambda: len(provider.to("chat")) == 1)
        status = server.stop()
        sending.join()

    assert status in {0, -signal.SIGTERM}
    assert answers == [200]


def test_second_server_on_the_same_file_refuses_to_start_and_says_why(
    server: ServerProcess, provider: Provider
) -> None:
    folder = server.log_path.parent
    second = ServerProcess(folder, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=provider.base_url)
    second.log_path = folder / "second.log"

    process = second.launch()

    assert process.wait(120) != 0
    assert "Another process uses" in second.log()
    assert "Traceback" not in second.log()


def test_lying_content_length_hurts_nobody(server: ServerProcess, client: httpx2.Client) -> None:
    import socket

    request = (
        b"POST /agents HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %s\r\n\r\n" + b'{"name": "Ada"}'
    )
    for announced in (b"999", b"3", b"-1", b"9" * 30, b"x"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(request % announced)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
        assert not answer or answer.split(b" ", 2)[1].startswith(b"4"), (announced, answer)
    assert client.get("/health").status_code == 200

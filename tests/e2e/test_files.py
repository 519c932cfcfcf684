"""Files on a whole server, over real sockets: what a provider gets, and what a kill leaves."""

import base64
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from uuid import UUID

import httpx2
import pytest

from tests.files import made
from tests.support.planted_secrets import PROVIDER_KEY as KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess, open_session

LARGE = made.png(padding=2_000_000)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def server(provider: Provider, tmp_path: Path) -> Iterator[ServerProcess]:
    settings = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.base_url}
    with ServerProcess(tmp_path, **settings, CHAT_MODEL_VISION="true") as server:
        yield server


def upload(client: httpx2.Client, name: str, data: bytes) -> httpx2.Response:
    return client.post("/files", files={"file": (name, data)})


def test_provider_gets_images_and_texts_and_hostile_documents_are_refused(
    server: ServerProcess, provider: Provider
) -> None:
    bomb = made.archive(("word/document.xml", b"<d>" + b" " * (100 << 20)))
    with server.client() as client:
        session_id = open_session(client)
        page = upload(client, "a.docx", made.docx("Words of a file")).json()
        image = upload(client, "a.png", LARGE).json()
        refused = [upload(client, "b", data) for data in (bomb, made.pdf("x", password="pw"))]
        content = [
            {"type": "image", "file_id": image["id"]},
            {"type": "file", "file_id": page["id"]},
        ]
        body = {"session_id": session_id, "content": content}
        reply = client.post("/messages/text", json=body)

    assert [response.status_code for response in refused] == [422, 422]
    assert reply.status_code == 200, reply.text
    (received,) = provider.to("chat")
    url = f"data:image/png;base64,{base64.b64encode(LARGE).decode()}"
    assert received.body["messages"][-1]["content"] == [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": 'File "a.docx":\n\nWords of a file\n\n(End of the file)'},
    ]


def test_kill_in_the_middle_of_uploads_leaves_no_bytes_without_a_row(server: ServerProcess) -> None:
    folder = server.folder / "files"
    acknowledged: list[str] = []
    uploaded = threading.Semaphore(0)

    def upload_until_killed() -> None:
        with suppress(httpx2.TransportError), server.client() as client:
            while True:
                acknowledged.append(upload(client, "a.png", LARGE).json()["id"])
                uploaded.release()

    threads = [threading.Thread(target=upload_until_killed) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        uploaded.acquire()
    server.kill()
    for thread in threads:
        thread.join()

    with closing(sqlite3.connect(server.folder / "agent-platform.db")) as database:
        rows = {UUID(row[0]).hex for row in database.execute("SELECT id FROM files")}
    stored = {path.stem for path in folder.rglob("*") if path.is_file()}
    assert stored <= rows
    assert {UUID(file_id).hex for file_id in acknowledged} <= stored
    server.start()
    with server.client() as client:
        assert client.get(f"/files/{acknowledged[0]}/content").content == LARGE

"""`/files`: what is taken, who sees it, and how long it stays."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from sqlalchemy import func, select, update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import StoredFile, utc_now
from app.services.file_port import FileStore, FileStoreUnavailable
from app.services.files.errors import FileUnreadable
from app.services.files.folder_store import FolderFileStore
from app.services.files.library import FileLibrary
from app.services.files.limits import FILE_BYTES, IN_DATABASE_BYTES
from app.services.sandbox.sandbox import Sandbox
from app.state import State
from tests.conftest import StartServer
from tests.files import made
from tests.files.conftest import Upload
from tests.support.application import client_of

pytestmark = pytest.mark.anyio
LARGE = made.png(padding=2 * IN_DATABASE_BYTES)
MakeLibrary = Callable[..., FileLibrary]


@pytest.fixture
def library(database: Database, settings: Settings, state: State) -> MakeLibrary:
    """Make a library of another store, without a reader of documents."""

    def make(store: FileStore | None = None) -> FileLibrary:
        whole = FolderFileStore(settings.data_dir / "files")
        return FileLibrary(database, store or whole, Sandbox([]), state["storage"])

    return make


def bytes_on_disk(settings: Settings) -> list[Path]:
    """Return the files of the store."""
    return [path for path in (settings.data_dir / "files").rglob("*") if path.is_file()]


async def rows_of(database: Database) -> int:
    """Return how many files have a row."""
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(StoredFile)) or 0


async def let_expire(database: Database) -> None:
    """Let a day pass for every file that nobody uses."""
    async with database.transaction() as db:
        await db.execute(
            update(StoredFile)
            .where(StoredFile.expires_at.is_not(None))
            .values(expires_at=utc_now() - timedelta(seconds=1))
        )


@pytest.mark.parametrize(
    ("name", "data", "media_type"),
    [
        ("a.txt", made.png(7, 5), "image/png"),
        ("a.jpg", made.gif(7, 5), "image/gif"),
        ("", made.jpeg(7, 5), "image/jpeg"),
        ("x.png", made.webp(7, 5), "image/webp"),
    ],
)
async def test_image_is_what_its_bytes_say(
    client: httpx2.AsyncClient, name: str, data: bytes, media_type: str
) -> None:
    made_file = (await client.post("/files", files={"file": (name, data)})).json()

    assert (made_file["media_type"], made_file["width"], made_file["height"]) == (media_type, 7, 5)
    assert (made_file["size_bytes"], made_file["text_tokens"]) == (len(data), None)
    assert (await client.get(f"/files/{made_file['id']}")).json() == made_file


async def test_documents_are_read_in_the_worker(upload: Upload, state: State) -> None:
    pdf = await upload("report.pdf", made.pdf("Quarterly figures"))
    docx = await upload("letter.docx", made.docx("Dear all"))
    page = await upload("page.html", b"<p>Hello")

    assert [each["media_type"].rpartition("/")[2][:6] for each in (pdf, docx, page)] == [
        "pdf", "vnd.op", "html",
    ]  # fmt: skip
    contents = await state["files"].contents(
        ADMIN.workspace_id, [UUID(each["id"]) for each in (pdf, docx, page)]
    )
    assert contents[UUID(pdf["id"])].text == "Quarterly figures"
    assert contents[UUID(docx["id"])].text == "Dear all"
    assert contents[UUID(page["id"])].text == "Hello"


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "file-unreadable"),
        (b"\x7fELF\0\0", 422, "file-unreadable"),
        (made.pdf("x", password="pw"), 422, "file-unreadable"),
        (made.docx("x", head="<!DOCTYPE d>"), 422, "file-unreadable"),
        (b"word " * 40_000, 422, "file-too-long"),
        (b"x" * (FILE_BYTES + 1), 413, "file-too-large"),
        (made.png_header(60_000, 60_000), 413, "file-too-large"),
        (b"\x89PNG\r\n\x1a\n", 422, "file-unreadable"),
    ],
    ids=["empty", "elf", "encrypted", "types", "long", "large", "pixels", "no header"],
)
async def test_what_is_not_taken_gets_a_clear_answer_and_no_row(
    client: httpx2.AsyncClient, database: Database, data: bytes, status: int, code: str
) -> None:
    response = await client.post("/files", files={"file": ("x", data)})

    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert not await rows_of(database)


async def test_document_that_takes_too_much_ends_its_reader_alone(
    client: httpx2.AsyncClient, upload: Upload
) -> None:
    xml = b'<d xmlns="wordprocessingml">' + b"<p/>" * 8_000_000
    data = made.archive(("word/document.xml", xml))
    response = await client.post("/files", files={"file": ("x", data)})

    assert response.json()["code"] in {"file-unreadable", "file-too-long"}
    assert (await upload("a.txt", b"Fine"))["text_tokens"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.png", "b.png"),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
        ("a\u202eb.png", "ab.png"),
        ("///", "file"),
    ],
)
async def test_name_is_the_last_part_of_a_path(upload: Upload, given: str, name: str) -> None:
    assert (await upload(given, made.png()))["name"] == name


@pytest.mark.parametrize("data", [made.png(), LARGE], ids=["in the database", "in the store"])
async def test_content_is_served_as_a_download_that_may_do_nothing(
    client: httpx2.AsyncClient, upload: Upload, data: bytes
) -> None:
    file = await upload("a'b\u00e4.png", data)
    response = await client.get(f"/files/{file['id']}/content")

    assert response.content == data
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''a%27b%C3%A4.png"
    assert "sandbox" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_list_is_the_newest_first_and_has_pages(
    client: httpx2.AsyncClient, upload: Upload
) -> None:
    ids = [(await upload(f"{n}.png", made.png()))["id"] for n in range(3)]
    first = await client.get("/files", params={"limit": 2})
    rest = await client.get(first.links["next"]["url"])

    assert [file["id"] for file in [*first.json(), *rest.json()]] == ids[::-1]


async def test_deleted_file_is_not_there_any_more(
    client: httpx2.AsyncClient,
    upload: Upload,
    state: State,
    settings: Settings,
    database: Database,
) -> None:
    for data in (made.png(), LARGE):
        file = await upload("a.png", data)
        assert (await client.delete(f"/files/{file['id']}")).status_code == 204
        for path in (f"/files/{file['id']}", f"/files/{file['id']}/content"):
            response = await client.get(path)
            assert (response.status_code, response.json()["code"]) == (404, "file-not-found")
        assert (await client.delete(f"/files/{file['id']}")).status_code == 404
    assert (await client.get("/files")).json() == []
    await let_expire(database)
    await state["files"].prune()
    assert not bytes_on_disk(settings)
    assert not await rows_of(database)


async def test_unknown_file_is_not_found(client: httpx2.AsyncClient) -> None:
    response = await client.get(f"/files/{uuid4()}")
    assert (response.status_code, response.json()["code"]) == (404, "file-not-found")


async def test_same_key_is_one_file(client: httpx2.AsyncClient, database: Database) -> None:
    key = {"Idempotency-Key": "k1"}
    first = await client.post("/files", files={"file": ("a.png", made.png())}, headers=key)
    again = await client.post("/files", files={"file": ("a.png", made.png())}, headers=key)
    other = await client.post("/files", files={"file": ("a.png", made.gif())}, headers=key)

    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert other.json()["code"] == "idempotency-key-reused"
    assert await rows_of(database) == 1


async def test_unused_file_is_deleted_after_a_day(
    upload: Upload, state: State, settings: Settings, database: Database
) -> None:
    small, large = await upload("a.png", made.png()), await upload("b.png", LARGE)
    kept = timedelta(hours=24)
    for file in (small, large):
        assert UUID(file["id"])
        times = [file["created_at"], file["expires_at"]]
        moments = [utc_now().fromisoformat(time) for time in times]
        assert moments[1] - moments[0] == kept
    await state["files"].prune()
    assert await rows_of(database) == 2
    assert len(bytes_on_disk(settings)) == 1

    await let_expire(database)
    await state["files"].prune()

    assert not await rows_of(database)
    assert not bytes_on_disk(settings)


class CrashingStore(FolderFileStore):
    """Writes, and then the server dies."""

    async def write(self, workspace_id: UUID, file_id: UUID, data: bytes) -> None:
        """Fulfil `FileStore.write` too late."""
        await super().write(workspace_id, file_id, data)
        raise FileStoreUnavailable("The server died.")


async def test_bytes_of_an_upload_that_was_never_finished_are_deleted(
    library: MakeLibrary, settings: Settings, database: Database, client: httpx2.AsyncClient
) -> None:
    broken = library(CrashingStore(settings.data_dir / "files"))
    draft = await broken.check(ADMIN, "a.png", LARGE)
    with pytest.raises(FileStoreUnavailable):
        await broken.store(draft)

    assert (await client.get("/files")).json() == []
    assert (await client.get(f"/files/{draft.id}")).status_code == 404
    assert len(bytes_on_disk(settings)) == 1
    await let_expire(database)
    await library().prune()
    assert not bytes_on_disk(settings)
    assert not await rows_of(database)


class FailingStore(FolderFileStore):
    """Cannot delete."""

    async def delete(self, workspace_id: UUID, file_id: UUID) -> None:
        """Fulfil `FileStore.delete` not at all."""
        del workspace_id, file_id
        raise FileStoreUnavailable("The disk is away.")


async def test_row_stays_until_the_bytes_are_gone(
    upload: Upload, library: MakeLibrary, settings: Settings, database: Database
) -> None:
    await upload("a.png", LARGE)
    await let_expire(database)
    with pytest.raises(FileStoreUnavailable):
        await library(FailingStore(settings.data_dir / "files")).prune()
    assert await rows_of(database) == 1

    await library().prune()

    assert not await rows_of(database)
    assert not bytes_on_disk(settings)


async def test_store_writes_whole_files_that_nobody_else_may_read(tmp_path: Path) -> None:
    store, workspace_id, file_id = FolderFileStore(tmp_path / "files"), uuid4(), uuid4()
    await store.write(workspace_id, file_id, b"first")
    await store.write(workspace_id, file_id, b"second")

    assert await store.read(workspace_id, file_id) == b"second"
    paths = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600]
    assert await store.read(workspace_id, uuid4()) is None
    await store.delete(workspace_id, file_id)
    await store.delete(workspace_id, file_id)
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


async def test_what_a_broken_write_left_goes_with_its_row(tmp_path: Path) -> None:
    store, workspace_id, file_id = FolderFileStore(tmp_path), uuid4(), uuid4()
    folder = anyio.Path(tmp_path / workspace_id.hex)
    await folder.mkdir()
    await (folder / f"{file_id.hex}.part").write_bytes(b"half")

    assert await store.read(workspace_id, file_id) is None
    await store.delete(workspace_id, file_id)

    assert [path async for path in folder.iterdir()] == []


async def test_store_that_cannot_be_written_is_503(tmp_path: Path) -> None:
    await anyio.Path(tmp_path / "files").write_bytes(b"a file where the folder should be")
    with pytest.raises(FileStoreUnavailable):
        await FolderFileStore(tmp_path / "files").write(uuid4(), uuid4(), b"x")


async def test_other_server_without_the_folder_says_that_it_lacks_the_bytes(
    upload: Upload, second_server: StartServer, settings: Settings, tmp_path: Path
) -> None:
    small, large = await upload("a.png", made.png()), await upload("b.png", LARGE)
    shared = {"files_dir": settings.data_dir / "files"}
    for own_settings, status in ((shared, 200), ({"files_dir": tmp_path / "own"}, 503)):
        async with second_server(**own_settings) as other, client_of(settings, other) as client:
            assert (await client.get(f"/files/{small['id']}/content")).status_code == 200
            response = await client.get(f"/files/{large['id']}/content")
            assert response.status_code == status


async def test_files_count_as_stored(
    settings: Settings,
    second_server: StartServer,
) -> None:
    some = made.png(padding=400_000)
    async with (
        second_server(limit_stored_mb_per_workspace=1) as other,
        client_of(settings, other) as client,
    ):
        statuses = [
            (await client.post("/files", files={"file": ("a.png", data)})).status_code
            for data in (some, some, some, LARGE)
        ]
    assert statuses == [201, 201, 429, 429]


async def test_answer_of_a_taken_over_reader_is_not_trusted(
    database: Database, state: State, tmp_path: Path
) -> None:
    async with Sandbox([]) as sandbox:
        store = FolderFileStore(tmp_path / "files")
        library = FileLibrary(database, store, sandbox, state["storage"], "tests.files.jobs:lie")
        for lie in (b"no text", b"wrong type", b"too long"):
            with pytest.raises(FileUnreadable):
                await library.check(ADMIN, "a.txt", lie)

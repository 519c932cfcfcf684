"""What the server writes is for its own account alone."""

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.database.file_lock import exclusive_file_lock
from app.core.database.migrations import upgrade
from app.core.errors import StartRefused
from app.core.key_file import load_or_create_admin_key
from app.core.private_files import make_private_folder
from tests.conftest import IsolatedSettings
from tests.support.provider import Provider
from tests.support.server_process import BareServerProcess, ServerProcess, open_session

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no modes")


Make = Callable[[Path], None]


def modes(folder: Path) -> dict[str, int]:
    """Return the modes of a folder's files, and of itself as `.`."""
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    return {".": stat.S_IMODE(folder.stat().st_mode), **found}


@pytest.fixture(autouse=True)
def _wide_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_running_server_has_a_data_folder_that_no_other_account_can_read(tmp_path: Path) -> None:
    with (
        Provider() as provider,
        BareServerProcess(
            tmp_path, OPENAI_API_KEY="sk-planted-in-the-test", OPENAI_BASE_URL=provider.base_url
        ) as server,
    ):
        with server.client() as client:
            body = {"session_id": open_session(client), "content": "Hi"}
            assert client.post("/messages/text", json=body).status_code == 200
        found = modes(server.data_dir)

    assert found.pop(".") == 0o700
    names = ("agent-platform.db", "agent-platform.db-wal", "agent-platform.db-shm", "admin.key")
    assert found.keys() > set(names)
    assert set(found.values()) == {0o600}


def test_migration_of_a_new_file_creates_it_for_its_owner_alone(tmp_path: Path) -> None:
    upgrade(IsolatedSettings(data_dir=tmp_path / "new" / "data"))

    found = modes(tmp_path / "new" / "data")
    assert found.pop(".") == 0o700
    assert set(found.values()) == {0o600}


def test_files_of_an_older_version_lose_the_rights_of_others(tmp_path: Path) -> None:
    database = tmp_path / "agent-platform.db"
    for suffix in ("", "-wal", "-shm", ".lock"):
        path = database.with_name(database.name + suffix)
        path.touch()
        path.chmod(0o664)

    with exclusive_file_lock(database):
        found = modes(tmp_path)
    del found["."]
    assert set(found.values()) == {0o600}


def test_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path)

    assert modes(tmp_path)["."] == 0o755


def test_admin_key_file_that_others_can_read_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "admin.key"
    path.write_text("k" * 16)
    path.chmod(0o644)

    assert load_or_create_admin_key(path).get_secret_value() == "k" * 16
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def symbolic_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_text("k" * 40)
    path.symlink_to(target)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def written_by(mode: int, text: str = "k" * 40) -> Make:
    def make(path: Path) -> None:
        path.write_text(text)
        path.chmod(mode)

    return make


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def foreign(path: Path) -> None:
    written_by(0o600)(path)
    os.chown(path, 12345, -1)


REFUSED = [
    pytest.param(symbolic_link, "is a symbolic link", id="link"),
    pytest.param(link_to_nothing, "is a symbolic link", id="dangling link"),
    pytest.param(folder, "is not a file", id="folder"),
    pytest.param(pipe, "is not a file", id="pipe"),
    pytest.param(written_by(0o620), "can be written by other accounts", id="group"),
    pytest.param(written_by(0o602), "can be written by other accounts", id="others"),
    pytest.param(written_by(0o600, ""), "has no key of at least 16", id="empty"),
    pytest.param(written_by(0o600, " \n"), "has no key of at least 16", id="blank"),
    pytest.param(written_by(0o600, "k" * 15), "has no key of at least 16", id="short"),
    pytest.param(written_by(0o600, "ключ" * 8), "has no key of at least 16", id="not ASCII"),
    pytest.param(
        foreign,
        "belongs to another account",
        id="another account",
        marks=pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root"),
    ),
]


@pytest.mark.parametrize(("make", "why"), REFUSED)
def test_admin_key_file_that_others_may_have_chosen_is_refused(
    tmp_path: Path, make: Make, why: str
) -> None:
    path = tmp_path / "admin.key"
    make(path)

    with pytest.raises(StartRefused, match=why):
        load_or_create_admin_key(path)


def test_server_with_such_a_file_does_not_start_and_says_why(tmp_path: Path) -> None:
    written_by(0o600, "short\n")(tmp_path / "admin.key")
    server = ServerProcess(tmp_path, OPENAI_API_KEY="k", ADMIN_API_KEY="")

    assert server.launch().wait(60) != 0
    assert "admin.key has no key of at least 16" in server.log()
    assert "Traceback" not in server.log()

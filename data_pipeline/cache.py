"""The cache of corpora: what is in it, what of it may go, and its removal.

    NAME-FINGERPRINT/             a finished corpus
    .NAME-FINGERPRINT.work/       an unfinished build, which the same command continues
    .NAME-FINGERPRINT.trash/      what a removal that was killed left
    NAME-FINGERPRINT.lock         held while it is built or removed

Nothing else there is ours to remove.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from data_pipeline.tasks.work import TASKS_LOCK
from loopcoder.config.compose import compose
from loopcoder.config.renamed import translate_manifest
from loopcoder.data.corpus import load_corpus
from loopcoder.data.manifest import MANIFEST
from loopcoder.errors import InputError
from loopcoder.storage.files import size_of
from loopcoder.storage.lock import hold, is_held, without_readers

Kind = Literal["corpus", "work", "trash", "lock"]

_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<kind>work|trash)")
_NAMED = re.compile(r".+-[0-9a-f]{16}")
"""What `driver.prepare` calls a corpus: its preset and its fingerprint."""


@dataclass(frozen=True)
class Entry:
    """A thing of ours in the cache."""

    name: str
    """Of the corpus: NAME-FINGERPRINT."""
    kind: Kind
    path: Path
    bytes: int
    written: datetime
    """When a corpus was finished, when anything else was last written to; local time."""
    manifest: dict[str, Any]
    """Of a corpus, in the words of this version; else empty."""
    is_busy: bool
    """A process builds or removes it at this moment."""
    is_read: bool
    """A process trains on it, or reads it in another way, at this moment."""

    @property
    def fingerprint(self) -> str:
        """Hash of what determines the corpus."""
        return self.name.rpartition("-")[2]

    @property
    def is_finished(self) -> bool:
        """A corpus, or the work of one that was built with data.build.keep_work."""
        is_kept = self.kind == "work" and (self.path.parent / self.name).is_dir()
        return self.kind == "corpus" or is_kept

    @property
    def domains(self) -> dict[str, tuple[int | None, int | None]]:
        """Tokens to train on and sequences of each domain; None where a manifest lacks them."""
        found = _mapping(self.manifest.get("domains"))
        train = {d: _mapping(_mapping(splits).get("train")) for d, splits in found.items()}
        return {d: (_count(t, "tokens"), _count(t, "sequences")) for d, t in train.items()}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(stats: dict[str, Any], name: str) -> int | None:
    value = stats.get(name)
    return value if isinstance(value, int) else None


def default_cache() -> Path:
    """Return the folder of corpora where data.build.cache_dir is not set: that of LOOPCODER_CACHE,
    or one in the home folder."""
    return Path(compose([]).data.build.cache_dir).expanduser()


def cache_size(cache: Path | None = None) -> int:
    """Return the bytes of everything in the cache; 0 where there is none."""
    folder = cache or default_cache()
    return size_of(folder) if folder.is_dir() else 0


def entries(cache: Path) -> list[Entry]:
    """Return what is ours in the cache, the oldest first; a lock only where it is left over."""
    found = [entry for path in _children(cache) if (entry := _entry(path))]
    kept = [entry for entry in found if entry.kind != "lock" or not _is_used(cache, entry.name)]
    return sorted(kept, key=lambda entry: entry.written)


def others(cache: Path) -> list[Path]:
    """Return what in the cache is not ours to remove."""
    return [path for path in _children(cache) if _entry(path, measure=False) is None]


def faults(cache: Path) -> dict[Path, InputError]:
    """Return what is wrong with each folder of the cache that has a manifest and cannot be used."""
    found = {}
    for path in _children(cache):
        if (
            (path / MANIFEST).exists()
            and not path.is_symlink()
            and not _HIDDEN.fullmatch(path.name)
        ):
            try:
                load_corpus(path, "size")
            except InputError as error:
                found[path] = error
    return found


def _children(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


def _entry(path: Path, *, measure: bool = True) -> Entry | None:
    """Return what a path in the cache is; None: nothing of ours, unreadable, or gone meanwhile."""
    try:
        manifest = _manifest(path)
        name_and_kind = _named(path, manifest)
        if name_and_kind is None or path.is_symlink():
            return None
        name, kind = name_and_kind
        return Entry(
            name=name,
            kind=kind,
            path=path,
            bytes=size_of(path) if measure else 0,
            written=_written(path, manifest),
            manifest=manifest,
            is_busy=_is_busy(path.parent, name),
            is_read=kind == "corpus" and is_held(path / MANIFEST, also_shared=True),
        )
    except OSError:
        return None


def _named(path: Path, manifest: dict[str, Any]) -> tuple[str, Kind] | None:
    """Return the name of the corpus that a path belongs to, and what of it that is."""
    hidden = _HIDDEN.fullmatch(path.name)
    if hidden and _NAMED.fullmatch(hidden["name"]) and path.is_dir() and _is_build(path):
        return hidden["name"], "work" if hidden["kind"] == "work" else "trash"
    if path.suffix == ".lock" and _NAMED.fullmatch(path.stem) and path.is_file():
        return path.stem, "lock"
    return (path.name, "corpus") if manifest else None


def _is_build(folder: Path) -> bool:
    """Say whether a hidden folder is what a build or a removal left; it may have got to nothing."""
    names = {path.name for path in folder.iterdir()}
    return not names or bool(names & {"owner", "done", TASKS_LOCK, "train", "val", MANIFEST})


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a corpus of any version; {} unless it names the folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        named = folder.name.endswith(f"-{manifest['fingerprint']}")
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return dict(translate_manifest(manifest)) if named else {}


def _written(path: Path, manifest: dict[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(manifest["created"])).astimezone()
    except (LookupError, ValueError, OverflowError):
        # tasks of a build write below done/STAGE
        files = [path, *path.glob("done/*")] if path.is_dir() else [path]
        return datetime.fromtimestamp(max(p.stat().st_mtime for p in files)).astimezone()


def _is_busy(cache: Path, name: str) -> bool:
    tasks = cache / f".{name}.work" / TASKS_LOCK
    return is_held(_lock(cache, name)) or is_held(tasks, also_shared=True)


def _lock(cache: Path, name: str) -> Path:
    return cache / f"{name}.lock"


class InUse(Exception):
    """What was to be removed is in use; the message is what another process does with it."""


def remove(entry: Entry) -> None:
    """Remove a thing of the cache, with its lock where nothing is left that the lock is of.

    A corpus loses its name first, so that what a kill leaves is never taken for a corpus.

    Raises:
        InUse: it is being built, here or by tasks that outlived their driver, or it is read.
        InputError: this user may not remove it.
    """
    cache = entry.path.parent
    lock = _lock(cache, entry.name)
    try:
        with ExitStack() as held:
            held.enter_context(hold(lock, _refuse))
            tasks = entry.path / TASKS_LOCK
            if entry.kind == "work" and tasks.exists():
                held.enter_context(hold(tasks, _refuse))
            if entry.kind == "corpus":
                held.enter_context(without_readers(entry.path / MANIFEST, _refuse_to_readers))
                trash = cache / f".{entry.name}.trash"
                shutil.rmtree(trash, ignore_errors=True)
                entry.path.rename(trash)
                shutil.rmtree(trash)
            elif entry.kind != "lock":
                shutil.rmtree(entry.path)
            if not _is_used(cache, entry.name):
                lock.unlink()
    except OSError as error:
        raise InputError.of(
            f"cannot remove {entry.path}: {error}",
            "this user may not write there, or it is on a disk that is read-only",
            f"sudo rm -r {entry.path}, or leave it out",
        ) from error


def _is_used(cache: Path, name: str) -> bool:
    """Say whether there is anything that a lock may be of, ours or not."""
    hidden = (cache / f".{name}.{kind}" for kind in ("work", "trash"))
    return any(path.exists() for path in (cache / name, *hidden))


def _refuse(_holder: str) -> None:
    raise InUse("a process builds it")


def _refuse_to_readers() -> None:
    raise InUse("a process reads it")


def matching(found: list[Entry], names: list[str], fits: Callable[[Entry], bool]) -> list[Entry]:
    """Return the entries with one of these names, or all without names, that fit.

    Raises:
        InputError: with every name that nothing has.
    """
    wrong = [name for name in names if name not in {entry.name for entry in found}]
    if wrong:
        raise InputError(
            [
                problem
                for name in wrong
                for problem in InputError.of(
                    f"there is no corpus {name} in the cache",
                    "a name is that of the folder, such as sample-de90dc211f64d29c",
                    "loopcoder data list",
                ).problems
            ]
        )
    return [entry for entry in found if (not names or entry.name in names) and fits(entry)]

"""The list of what a build leaves out: one compressed file of JSON lines for every task that drops
something, in the folder of the finished corpus.

CORPUS/dropped/read-00003.jsonl.zst     {"stage": "clean", "reason": "few_words", "source": ...,
                                         "path": ..., "row": 17, "bytes": 1204} ...

A line is written when the drop is counted (`schema.Tally`), so nothing is kept in memory but a few
examples; that lines and counts agree is checked at the end of every task. An entry of a whole file
has `"unit": "file"`; one of a copy has `stays`, the document that is kept in its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from data_pipeline.schema import Drop, Place, Tally
from data_pipeline.tasks.chunks import PACKED, Compressed, dumps, loads, packed_lines
from data_pipeline.tasks.work import Work
from loopcoder.backends import require
from loopcoder.storage.files import whole_file

FOLDER = "dropped"
"""Of the lists, below the corpus."""
UNKNOWN_TYPE = "unknown_type"
EXAMPLES = 3
"""Of each reason that a task remembers."""
_LINES = 500
"""Written at a time."""
_MOST_SUFFIXES = 200
"""That a task remembers; names of files may be anything."""

Entry = dict[str, Any]
"""A line of a list."""


@dataclass
class Dropped:
    """What a task, or a whole build, left out, in short."""

    listed: bool = False
    """Every drop has a line in the list."""
    entries: int = 0
    """Lines."""
    counts: list[tuple[str, str, str, int]] = field(default_factory=list)
    """(stage, unit, reason, number), the most frequent first."""
    examples: dict[str, list[Entry]] = field(default_factory=dict)
    """Some entries, by `STAGE/REASON`."""
    suffixes: dict[str, int] = field(default_factory=dict)
    """Of files of unknown type, the most frequent first."""


class DropList:
    """Takes the drops of one task; leave the `with` block to have their list on disk."""

    def __init__(
        self,
        work: Work,
        stage: str,
        index: int,
        *,
        source: str | None = None,
        package_of: Callable[[str], str] | None = None,
        place_of: Callable[[str], str] = str,
    ) -> None:
        """Begin the list of task (stage, index).

        Args:
            work: The build, which may do without lists (data.build.list_drops).
            stage: Of the task.
            index: Of the task.
            source: Of the places that name none.
            package_of: Returns the package that a path belongs to, "" for none.
            place_of: Returns how documents call a path.
        """
        folder = work.corpus / FOLDER
        self._path = folder / f"{stage}-{index:05d}.jsonl.{PACKED}"
        self._is_on = work.data.build.list_drops
        self._source, self._package_of, self._place_of = source, package_of, place_of
        self._open = ExitStack()
        self._file: Compressed | None = None
        self._lines: list[bytes] = []
        self.tallies: list[Tally] = []
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._examples: dict[str, list[Entry]] = {}
        self._suffixes: Counter[str] = Counter()
        self._is_named = True
        self.packages: dict[str, Counter[str]] = {}
        """By package, what is left out of it by reason."""

    def tally(self, stage: str) -> Tally:
        """Return a tally whose drops are listed here."""
        tally = Tally(stage, listed=self._add)
        self.tallies.append(tally)
        return tally

    @property
    def files(self) -> list[Path]:
        """The list, if anything is in it."""
        return [self._path] if self._file is not None else []

    def summary(self) -> Dropped:
        """Return what was left out, in short."""
        return Dropped(
            listed=self._is_on and self._is_named,
            entries=self._counts.total() if self._is_on else 0,
            counts=in_order(self._counts),
            examples=self._examples,
            suffixes=dict(self._suffixes.most_common(_MOST_SUFFIXES)),
        )

    def _add(self, drop: Drop) -> None:
        place, kind = drop.place, (drop.stage, drop.unit, drop.reason)
        self._counts[kind] += 1
        self._is_named &= bool(place.path)
        is_example = self._counts[kind] <= EXAMPLES and bool(place.path)
        if is_example or self._is_on:
            entry = self._entry(drop)
            if is_example:
                self._examples.setdefault(f"{drop.stage}/{drop.reason}", []).append(entry)
            if self._is_on:
                self._lines.append(dumps(entry))
                if len(self._lines) >= _LINES:
                    self._write()
        if drop.reason == UNKNOWN_TYPE:
            self._suffixes[_escaped(PurePosixPath(place.path).suffix.lower())] += 1
        package = self._package_of(place.path) if self._package_of else ""
        if package:
            self.packages.setdefault(package, Counter())[drop.reason] += 1

    def _entry(self, drop: Drop) -> Entry:
        entry: Entry = {"stage": drop.stage, "reason": drop.reason}
        if drop.unit != "document":
            entry["unit"] = drop.unit
        self._spell(drop.place, entry)
        if drop.stays is not None:
            entry["stays"] = {}
            self._spell(drop.stays, entry["stays"])
        return entry

    def _spell(self, place: Place, entry: Entry) -> None:
        """Add what is known of a place."""
        entry["source"] = place.source or self._source
        if place.path:
            path = self._place_of(place.path)
            entry["path"] = path if path.isascii() else _escaped(path)
        if place.row is not None:
            entry["row"] = place.row
        if place.piece is not None:
            entry["piece"] = place.piece
        if place.num_bytes is not None:
            entry["bytes"] = place.num_bytes
        if place.files:
            entry["files"] = [
                {"path": path} | ({} if row is None else {"row": row}) for path, row in place.files
            ]

    def _write(self) -> None:
        """Write the lines that wait, if there are any."""
        if not self._lines:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = Compressed(self._open.enter_context(whole_file(self._path)))
        self._file.write(b"\n".join(self._lines) + b"\n")
        self._lines.clear()

    def __enter__(self) -> DropList:
        # what an attempt left that was killed
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._open.__exit__(kind, error, trace)
            return
        with self._open:
            self._check()
            self._write()
            if self._file is not None:
                self._file.finish()

    def _check(self) -> None:
        """Raise RuntimeError unless there are as many entries of every reason as were counted."""
        counted: Counter[tuple[str, str, str]] = Counter()
        for tally in self.tallies:
            for unit, counts in (("document", tally.drops), ("file", tally.file_drops)):
                counted.update({(tally.stage, unit, reason): n for reason, n in counts.items()})
        if +counted != +self._counts:
            raise RuntimeError(
                f"{self._path.name}: {dict(counted)} were dropped, {dict(self._counts)} are listed"
            )


def in_order(counts: Counter[tuple[str, str, str]]) -> list[tuple[str, str, str, int]]:
    """Return (stage, unit, reason, number), the most frequent first."""
    found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(*what, number) for what, number in found]


def total_dropped(parts: Iterator[Dropped]) -> Dropped:
    """Add up what tasks left out."""
    total = Dropped(listed=True)
    counts: Counter[tuple[str, str, str]] = Counter()
    suffixes: Counter[str] = Counter()
    for part in parts:
        total.listed &= part.listed
        total.entries += part.entries
        for *what, number in part.counts:
            counts[what[0], what[1], what[2]] += number
        suffixes.update(part.suffixes)
        for reason, found in part.examples.items():
            here = total.examples.setdefault(reason, [])
            here += found[: EXAMPLES - len(here)]
    total.counts = in_order(counts)
    total.suffixes = dict(suffixes.most_common())
    return total


def lists_of(corpus: Path) -> list[Path]:
    """Return the lists of a finished corpus; [] for one that has none."""
    return sorted((corpus / FOLDER).glob("*.jsonl.*"))


def read_list(path: Path) -> Iterator[Entry]:
    """Yield the entries of a list.

    Raises:
        InputError: it is packed by zstandard, which is not installed.
        OSError, ValueError: it cannot be read, or is damaged.
    """
    packed = path.suffix[1:]
    if packed == "zst":
        require("zstandard", f"{path} is compressed with zstd", "it needs zstandard")
    with open(path, "rb") as file:
        for line in packed_lines(file, packed):
            yield loads(line)


def _escaped(path: str) -> str:
    """Return a path as JSON can spell it: the name of a file need not be UTF-8."""
    return path.encode(errors="backslashreplace").decode()

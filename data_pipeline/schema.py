"""What flows through the pipeline: documents, and the tally that every step keeps of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import Field

MAX_DOCUMENT_BYTES = 8 << 20
"""Larger documents are dropped and counted: the tokenizer takes some 100 bytes per byte of text."""

NAMED_FAULTS = 10
"""Files with faults that are named, for each reason."""


MEMBERS = "members"
"""Key of `Document.meta`: (path, row) of each file that a document of a repository is made of."""


class Place(NamedTuple):
    """Where something comes from."""

    path: str
    """File, as the source names it; `ARCHIVE!MEMBER` inside archives."""
    row: int | None = None
    """Of a table, from 0."""
    num_bytes: int | None = None
    """Its size, where it is known: of a file as it lies there, of a document in UTF-8."""
    source: str | None = None
    """None: what reads it knows."""
    piece: int | None = None
    """Of a document that was split, from 0."""
    files: Sequence[tuple[str, int | None]] = ()
    """Of a document of a repository: (path, row) of each of its files."""


@dataclass(frozen=True)
class Document:
    """One document of the corpus."""

    id: str
    """xxh3-128 of (source, path, row) in hex: the same in every run, whatever else is read."""
    text: str
    domain: str
    """`text` or `code`."""
    language: str
    """Programming language, or the format of prose."""
    source: str
    """Name of the source it comes from."""
    path: str
    """File it comes from, as the source names it."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """Where it comes from, for the list of what is dropped."""
        text = self.text
        size = len(text if text.isascii() else text.encode(errors="surrogatepass"))
        row, files = self.meta.get("row"), self.meta.get(MEMBERS, ())
        return Place(self.path, row, size, self.source, files=files)


class Drop(NamedTuple):
    """A document or file that a step leaves out."""

    stage: str
    unit: str
    """`document`, or `file` for one that is left out as a whole."""
    reason: str
    place: Place
    stays: Place | None = None
    """Of a copy: the document that stays in its place."""


@dataclass
class Tally:
    """What one step of the pipeline took in, handed on and dropped, by reason.

    Drops are counted by `drop` and `drop_file` alone, which hand each to `listed`, so that the list
    of what was dropped has as many entries as the counts say.
    """

    stage: str
    """Name of the step; a stage may have several."""
    rows_in: int = 0
    rows_out: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """Repairs and oddities of rows or files that were kept."""
    file_drops: Counter[str] = field(default_factory=Counter)
    """Files that were left out as a whole, by reason; their rows appear nowhere else."""
    bytes_in: int = 0
    """Of reading: what was read, unpacked."""
    files: int = 0
    """Files that were looked at, those in archives included."""
    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    """What is wrong with the input: for each reason the files with most of it, and how often."""
    columns: list[str] = field(default_factory=list)
    """Columns of text in a table that lacks the wanted one, the likeliest first."""
    lacking: dict[str, list[str]] = field(default_factory=dict)
    """Of code: `repository_field` and `path_field` that name nothing in some row, with the columns
    of that row's table."""
    listed: Annotated[Callable[[Drop], None] | None, Field(exclude=True)] = field(
        default=None, repr=False, compare=False
    )
    """Takes every drop; None where nobody asks, as in sums of tallies."""

    def drop(self, reason: str, place: Place, stays: Place | None = None) -> None:
        """Count a document or row that is left out."""
        self.drops[reason] += 1
        if self.listed is not None:
            self.listed(Drop(self.stage, "document", reason, place, stays))

    def drop_file(self, reason: str, path: object) -> None:
        """Count a file, or a folder, that is left out as a whole or from some place on.

        Args:
            reason: Why, in one word.
            path: Its place, or what is called as it is.
        """
        place = path if isinstance(path, Place) else Place(str(path))
        self.file_drops[reason] += 1
        if self.listed is not None:
            self.listed(Drop(self.stage, "file", reason, place))

    def damaged(self, reason: str, path: object) -> None:
        """Count a file that is left out because something is wrong with it, and name it."""
        self.drop_file(reason, path)
        self.fault(reason, path.path if isinstance(path, Place) else path)

    def fault(self, reason: str, path: object, count: int = 1) -> None:
        """Name a file in which something is wrong, of which a thousand may be held."""
        # a name need not be UTF-8
        name = str(path).encode(errors="backslashreplace").decode()
        named = self.faults.setdefault(reason, {})
        named[name] = named.get(name, 0) + count
        if len(named) > 100 * NAMED_FAULTS:
            self.faults[reason] = _worst(named)

    def add(self, other: Tally) -> None:
        """Add the tally of the same step over other documents."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.drops.update(other.drops)
        self.notes.update(other.notes)
        self.file_drops.update(other.file_drops)
        self.bytes_in += other.bytes_in
        self.files += other.files
        self.columns = self.columns or other.columns
        self.lacking = other.lacking | self.lacking
        for reason, named in other.faults.items():
            for path, count in named.items():
                self.fault(reason, path, count)

    def worst(self) -> dict[str, dict[str, int]]:
        """Return `faults` with the ten worst files of each reason, the worst first."""
        return {reason: _worst(named) for reason, named in sorted(self.faults.items())}

    def check(self) -> None:
        """Assert rows_in = rows_out + drops.

        Raises:
            RuntimeError: rows were lost or invented, a bug of the step and not of its input.
        """
        dropped = sum(self.drops.values())
        if self.rows_in != self.rows_out + dropped:
            raise RuntimeError(
                f"stage {self.stage}: {self.rows_in} rows in, but {self.rows_out} out "
                f"+ {dropped} dropped ({dict(self.drops)})"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the tally as it stands in the manifest."""
        return {
            "stage": self.stage,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "drops": dict(sorted(self.drops.items())),
            "notes": dict(sorted(self.notes.items())),
            "file_drops": dict(sorted(self.file_drops.items())),
        }


def _worst(named: Mapping[str, int]) -> dict[str, int]:
    order = sorted(named.items(), key=lambda item: (-item[1], item[0]))
    return dict(order[:NAMED_FAULTS])

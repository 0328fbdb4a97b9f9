"""What every source offers, and how rows and bytes become documents."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import xxhash

from data_pipeline.langid.names import canonical, domain_of
from data_pipeline.readers.columns import column_of, text_columns, value_at
from data_pipeline.readers.verdict import BAD_ROWS, NOT_UTF8, judge_rows, judge_utf8
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document, Place, Tally
from loopcoder.chat.forms import COLUMNS, MESSAGES
from loopcoder.config.build import SourceConfig
from loopcoder.config.mixture import CHAT
from loopcoder.errors import LoopcoderError

_MANY_REFUSED = 1000
"""Texts that are not UTF-8 and may not be there, after which reading on is no use."""
Documents = Generator[Document, None, None]

LICENCES, ORIGIN = ("licence", "license"), "source"
"""Columns of a table of conversations besides these, by their usual names."""


class Part(Protocol):
    """A piece of a source that one task reads; it is pickled to the process that does."""

    name: str
    """Name of the source."""
    config: SourceConfig
    domains: frozenset[str]
    """Domains that it may hold documents of, as far as can be told without reading them."""
    size: int
    """Bytes that will be read, as far as is known; else 0."""
    num_files: int

    def documents(self, tally: Tally) -> Documents:
        """Read the documents in an order that is always the same, and keep the tally; closed before
        its end, it counts the files that were not read."""
        ...

    def package_of(self, path: str) -> str:
        """Return the folder of the package that a path belongs to, "" outside packages."""
        ...

    def place_of(self, path: str) -> str:
        """Return how documents call a path."""
        ...


class Source(Part, Protocol):
    """A source that was looked at and can be read, as a whole or in parts."""

    identity: list[Any]
    """What determines its documents, for the fingerprint; JSON."""
    roots: list[str]
    """Folders from which the paths of its documents count."""
    provenance: dict[str, Any]
    """Where it comes from and under which licences, for the manifest; JSON."""

    def parts(self, part_bytes: int) -> Sequence[Part]:
        """Cut it into pieces of about this size, always in the same way.

        A source with a limit is one piece: where it ends depends on all that comes before.
        """
        ...


def is_limited(config: SourceConfig) -> bool:
    """Tell whether a source ends before its documents do."""
    return config.max_documents is not None or config.max_bytes is not None


def document_id(source: str, path: str, row: int | None = None) -> str:
    """Return the id of a document by its place."""
    place = f"{source}\0{path}\0{'' if row is None else row}"
    # names of files need not be UTF-8
    return xxhash.xxh3_128_hexdigest(place.encode(errors="surrogateescape"))


def decode(data: bytes, config: SourceConfig, tally: Tally, where: str) -> str | None:
    """Decode UTF-8; invalid bytes are replaced, or the text is dropped (None), as the config says.

    If it says neither, the text is dropped and named, so that all such are refused together when
    the source was read.

    Raises:
        InputError: a thousand such were met already.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if config.invalid_utf8 == "replace":
            tally.notes["invalid_utf8_replaced"] += 1
            return data.decode(errors="replace")
        if config.invalid_utf8 != "drop":
            tally.fault(NOT_UTF8, f"{where} (byte {error.start} is 0x{data[error.start]:02x})")
            tally.notes[NOT_UTF8] += 1
            if tally.notes[NOT_UTF8] >= _MANY_REFUSED:
                judge_utf8(tally, is_all=False)
        return None


def guarded(documents: Iterable[Document], path: object, tally: Tally) -> Iterator[Document]:
    """Yield the documents of a file; one that breaks its reader costs the rest of that file only.

    What readers know to go wrong they count themselves. This is for the rest: JSON nested too
    deeply, sizes that no memory holds, a library's own fault.
    """
    try:
        yield from documents
    except (OSError, LoopcoderError):
        raise
    except Exception as error:
        abandon(f"corrupt_{type(error).__name__}", path, tally)


def abandon(reason: str, path: object, tally: Tally) -> None:
    """Count a file that could not be read to its end, or the row at which that was."""
    row = tally.rows_in - tally.rows_out - tally.drops.total()
    if row:
        for _ in range(row):  # one at most, since readers count each row before the next
            tally.drop(reason, Place(str(path)))
        tally.fault(reason, path)
    else:
        tally.damaged(reason, path)


def row_domains(config: SourceConfig) -> frozenset[str]:
    """Return the domains that rows of a table may belong to."""
    if config.kind == "chat":
        return frozenset({CHAT})
    if config.domain != "auto":
        return frozenset({config.domain})
    return frozenset({"text", "code"} if config.language_field else {"text"})


def columns(config: SourceConfig) -> list[str]:
    """Return the columns of a table that are read, if it has them; the text's comes first."""
    if config.kind == "chat":
        own = (config.messages_field, config.tools_field, config.licence_field)
        return list(dict.fromkeys(name for name in (*own, *COLUMNS, *LICENCES, ORIGIN) if name))
    fields = (
        config.text_field,
        config.language_field,
        config.path_field,
        config.licence_field,
        config.repository_field,
    )
    return [name for name in fields if name]


def lacking(config: SourceConfig, names: Sequence[str]) -> str | None:
    """Return the column without which a table has nothing to read; None: it has it."""
    if config.kind != "chat":
        return config.text_field if column_of(config.text_field, names) is None else None
    if config.messages_field is None and not set(names).isdisjoint(MESSAGES):
        return None
    wanted = config.messages_field or MESSAGES[0]
    return wanted if wanted not in names else None


@dataclass(frozen=True)
class RowReader:
    """Makes documents of the rows of one table, and counts every row once."""

    config: SourceConfig
    source: str
    """Name of the source."""
    path: str
    """The table: a file, or a split of a data set."""
    tally: Tally
    place: str = ""
    """How documents and their ids call the table; else its path."""
    columns: Sequence[str] = ()
    """Of the table, where a row has only those that are read."""

    def document(self, row: object, number: int) -> Document | None:
        """Make a document of a row, or count why not; `number` is its place in the table."""
        if not isinstance(row, Mapping):
            if isinstance(row, list) and row and isinstance(row[0], Mapping):
                self.tally.columns = self.tally.columns or text_columns(row[0])
            self.reject("not_an_object", number)
            return None
        text: Any = value_at(row, self.config.text_field)
        reason = _fault(text)
        if reason:
            if reason in ("missing_text", "text_not_a_string") and not self.tally.columns:
                self.tally.columns = text_columns(row)
            self.reject(reason, number)
            return None
        field = self.config.language_field
        spelled = value_at(row, field) if field else None
        language = canonical(spelled) if _is_name(spelled) else None
        domain: str = self.config.domain
        if domain == "auto":
            domain = domain_of(language) if language else "text"
        self.tally.rows_in += 1
        self.tally.rows_out += 1
        named = _named(row, self.config)
        if domain == "code" and self.config.repository_field:
            self._note_missing(row, named)
        return Document(
            id=document_id(self.source, self.place or self.path, number),
            text=text,
            domain=domain,
            language=language or ("Text" if domain == "text" else "unknown"),
            source=self.source,
            path=self.place or self.path,
            meta={"row": number} | named,
        )

    def _note_missing(self, row: Mapping[str, Any], named: Mapping[str, str]) -> None:
        """Keep the columns of the first row that does not name its repository, or its file."""
        fields = {"repository": self.config.repository_field, "path": self.config.path_field}
        for name, field in fields.items():
            if field and name not in named and field not in self.tally.lacking:
                self.tally.lacking[field] = [str(column) for column in self.columns or row]

    def reject(self, reason: str, number: int) -> None:
        """Count a row that is left out; `number` is its place in the table.

        Raises:
            InputError: too many of the rows of a stream were bad so far: it may have no end at
                which it could be judged.
        """
        self.tally.rows_in += 1
        self.tally.drop(reason, Place(self.place or self.path, number))
        if reason in BAD_ROWS:
            self.tally.fault(reason, self.path)
            if self.config.streaming:
                judge_rows(self.tally, self.source)


def _is_name(value: object) -> TypeGuard[str]:
    """Tell whether a value may name a language: a string with letters that UTF-8 can spell."""
    return isinstance(value, str) and bool(value.strip()) and value.strip().isprintable()


def _named(row: Mapping[str, Any], config: SourceConfig) -> dict[str, str]:
    """Return the path of a row's file, its licence and its repository, if the table has columns for
    them."""
    columns = {
        "path": config.path_field,
        "licence": config.licence_field,
        "repository": config.repository_field,
    }
    values = {name: value_at(row, column) for name, column in columns.items() if column}
    number = values.get("repository")
    if isinstance(number, int) and not isinstance(number, bool):
        values["repository"] = str(number)
    return {name: value for name, value in values.items() if _is_name(value)}


def _fault(text: object) -> str | None:
    """Return why what a row has for a text is no document."""
    if text is None:
        return "missing_text"
    if not isinstance(text, str):
        return "text_not_a_string"
    if not text.strip():
        return "empty"
    if len(text) > MAX_DOCUMENT_BYTES:
        return "too_large"
    try:
        return "too_large" if len(text.encode()) > MAX_DOCUMENT_BYTES else None
    except UnicodeEncodeError:  # a lone \ud800, which JSON can spell and UTF-8 cannot
        return "surrogate"

"""What every source offers, and how rows and bytes become documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import xxhash

from data_pipeline.langid.names import canonical, domain_of
from data_pipeline.readers.columns import value_at
from data_pipeline.schema import MAX_DOCUMENT_BYTES, Document, Tally
from loopcoder.config.build import SourceConfig
from loopcoder.config.fields import as_override
from loopcoder.errors import InputError

BAD_ROWS = ("broken_json", "not_an_object", "missing_text", "text_not_a_string", "surrogate")
"""Drops that speak against the input or the config, not only against a row."""
MIN_ROWS_TO_JUDGE = 1000
MAX_BAD_FRACTION = 0.2
MIN_BAD_FILES = 5


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

    def documents(self, tally: Tally) -> Iterator[Document]:
        """Read the documents in an order that is always the same, and keep the tally."""
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


def decode(
    data: bytes, config: SourceConfig, tally: Tally, where: str, encoding: str = "utf-8"
) -> str | None:
    """Decode UTF-8; invalid bytes are replaced, or the text is dropped (None), as the config says.

    Raises:
        InputError: there are invalid bytes and the config says neither; the error names the place.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if config.invalid_utf8 == "replace":
            tally.notes["invalid_utf8_replaced"] += 1
            return data.decode(encoding, errors="replace")
        if config.invalid_utf8 == "drop":
            return None
        raise InputError.of(
            f"{where} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}",
            "replacing it silently would change what is trained on",
            "convert it (iconv -t UTF-8), or data.build.invalid_utf8=replace (or =drop)",
        ) from error


def row_domains(config: SourceConfig) -> frozenset[str]:
    """Return the domains that rows of a table may belong to."""
    if config.domain != "auto":
        return frozenset({config.domain})
    return frozenset({"text", "code"} if config.language_field else {"text"})


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

    def document(self, row: object, number: int) -> Document | None:
        """Make a document of a row, or count why not; `number` is its place in the table."""
        if not isinstance(row, Mapping):
            self.reject("not_an_object")
            return None
        text: Any = value_at(row, self.config.text_field)
        reason = _fault(text)
        if reason:
            self.reject(reason)
            return None
        field = self.config.language_field
        named = value_at(row, field) if field else None
        language = canonical(named) if _is_name(named) else None
        domain: str = self.config.domain
        if domain == "auto":
            domain = domain_of(language) if language else "text"
        self.tally.rows_in += 1
        self.tally.rows_out += 1
        return Document(
            id=document_id(self.source, self.place or self.path, number),
            text=text,
            domain=domain,
            language=language or ("Text" if domain == "text" else "unknown"),
            source=self.source,
            path=self.place or self.path,
            meta={"row": number} | _named(row, self.config),
        )

    def reject(self, reason: str) -> None:
        """Count a row that is left out.

        Raises:
            InputError: too many of the rows so far were bad.
        """
        self.tally.rows_in += 1
        self.tally.drop(reason)
        num_rows = self.tally.rows_in
        num_bad = sum(self.tally.drops[r] for r in BAD_ROWS)
        if num_rows >= MIN_ROWS_TO_JUDGE and num_bad > MAX_BAD_FRACTION * num_rows:
            raise InputError.of(
                f"{num_bad} of the first {num_rows} rows of source {self.source} are unusable: "
                + ", ".join(f"{n} {r}" for r, n in self.tally.drops.most_common()),
                f"more than {MAX_BAD_FRACTION:.0%} bad rows mean a wrong file or column",
                f"check text_field (now {self.config.text_field}) and path "
                f"(now {as_override(self.config.path)}) of the source",
            )


def _is_name(value: object) -> TypeGuard[str]:
    """Tell whether a value may name a language: a string with letters that UTF-8 can spell."""
    return isinstance(value, str) and bool(value.strip()) and value.strip().isprintable()


def _named(row: Mapping[str, Any], config: SourceConfig) -> dict[str, str]:
    """Return the path of a row's file and its licence, if the table has columns for them."""
    columns = {"path": config.path_field, "licence": config.licence_field}
    values = {name: value_at(row, column) for name, column in columns.items() if column}
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


def judge_files(tally: Tally, num_files: int, source: str) -> None:
    """Raise InputError if too many of the files so far had to be left out as damaged."""
    bad = sum(n for reason, n in tally.file_drops.items() if reason.startswith("corrupt"))
    if bad >= MIN_BAD_FILES and bad > MAX_BAD_FRACTION * num_files:
        raise InputError.of(
            f"{bad} of the first {num_files} files of source {source} are damaged: "
            + ", ".join(f"{n} {r}" for r, n in tally.file_drops.most_common()),
            f"more than {MAX_BAD_FRACTION:.0%} damaged files mean that the copy went wrong",
            "copy the files again, or take the damaged ones out of the source's path",
        )


def judge_end(tally: Tally, source: str) -> None:
    """Raise InputError if a source that was read to its end gave faults and not one document."""
    bad = {reason: n for reason, n in tally.drops.items() if reason in BAD_ROWS}
    bad |= {r: n for r, n in tally.file_drops.items() if r.startswith(("corrupt", "no_column"))}
    if bad and not tally.rows_out:
        raise InputError.of(
            f"source {source} has no usable document: "
            + ", ".join(f"{n} {reason}" for reason, n in bad.items()),
            "faults alone mean a wrong file or column, or a copy that went wrong",
            "check text_field and path of the source, or take it out of data.build.sources",
        )

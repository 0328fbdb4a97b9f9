"""Documents of a chunk as token ids, and their count.

Documents are encoded twice: to count tokens, and again once the plan says how many copies to take
(shuffle/stages.py). Both times a document is encoded in the same way (its first copy with the same
cut for filling in the middle), so that what is planned is what comes out. A document of more than
MAX_DOCUMENT_TOKENS is split at line ends into pieces, which are selected one by one; one that is
made of files of a repository has its own limit (data.build.repository.max_bytes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.batches import batches
from data_pipeline.dedup.exact import normalise
from data_pipeline.repositories.chunks import kept, text_bytes
from data_pipeline.repositories.layout import is_joined, repository_key
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.dropped import DropList, Dropped
from data_pipeline.tasks.origins import Origins
from data_pipeline.tasks.work import Output, Result, Work
from data_pipeline.tokenizer import fim, repositories
from data_pipeline.tokenizer.changes import note_changes
from data_pipeline.tokenizer.encoder import Encoder
from data_pipeline.tokenizer.repositories import Separators
from loopcoder.config.build import EOD, FimConfig
from loopcoder.storage.files import write_bytes

ENTRY = np.dtype(
    [("content", "<u8"), ("length", "<i4"), ("bytes", "<i4"), ("kind", "<u4"), ("piece", "<u2")]
)
"""Of a piece: hash of its document's content, tokens, UTF-8, kind (index of [domain, language]),
and its place in the document."""

BATCH_CHARS = 1 << 20
"""Text that is encoded at a time."""

MAX_DOCUMENT_TOKENS = 65_536
"""Longer documents are split before they are counted: the error of a selection grows with them."""


@dataclass(frozen=True)
class Tokenizer(Result):
    """The tokenizer of the build."""

    stage: ClassVar[str] = "tokenizer"
    xxh3_128: str
    vocab_size: int
    eod_id: int
    engine: str
    """What encodes."""
    trained: bool
    eod: str = EOD
    """Name of the token that ends a document."""
    normaliser: str | None = None
    """What the tokenizer does to text before it splits it; None: nothing."""


@dataclass(frozen=True)
class Counted(Result):
    """What a chunk has."""

    stage: ClassVar[str] = "count"
    tallies: list[Tally]
    """Of dropping copies, and of counting."""
    kinds: list[tuple[str, str]]
    """Domain and language of each kind in the file."""
    origins: Origins
    """What is kept of each source and package."""
    dropped: Dropped


@dataclass(frozen=True)
class Encoding:
    """How documents become ids."""

    encoder: Encoder
    rules: FimConfig
    specials: fim.Specials | None
    """None: nothing is rearranged."""
    separators: Separators | None
    """None: there are no documents of repositories."""

    @classmethod
    def of(cls, work: Work) -> Encoding:
        encoder, build = encoder_of(work), work.data.build
        return cls(
            encoder,
            build.fim,
            fim.Specials.of(encoder) if build.fim.rate else None,
            Separators.of(encoder) if build.repository.enabled else None,
        )

    def encode(
        self, pieces: Sequence[Document], copies: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Yield (place among the pieces, ids) of each, side by side."""
        forms = [(piece.domain, is_joined(piece)) for piece in pieces]
        for form in sorted(set(forms)):
            mine = [i for i, found in enumerate(forms) if found == form]
            ids, lengths = self._encoded([pieces[i] for i in mine], [copies[i] for i in mine])
            ends = np.cumsum(lengths, dtype=np.int64)
            for i, stop, length in zip(mine, ends.tolist(), lengths.tolist(), strict=True):
                yield i, ids[stop - length : stop]

    def _encoded(
        self, pieces: Sequence[Document], copies: Sequence[int]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the ids of pieces of one domain and form, and the tokens of each."""
        if self.separators is not None and is_joined(pieces[0]):
            return repositories.encode(
                self.encoder, pieces, copies, self.rules, self.specials, self.separators
            )
        texts = [piece.text for piece in pieces]
        if self.specials is None:
            return self.encoder.encode_documents(texts)
        names, domain = [piece.id for piece in pieces], pieces[0].domain
        return fim.apply(
            self.encoder, texts, names, copies, self.rules, self.specials, domain=domain
        )

    def lengths(self, pieces: Sequence[Document]) -> list[int]:
        """Return the tokens of each piece's first copy."""
        found = [0] * len(pieces)
        for place, ids in self.encode(pieces, [1] * len(pieces)):
            found[place] = len(ids)
        return found

    def split(self, document: Document) -> list[Document]:
        """Cut a long document at line ends."""
        lines = document.text.split("\n")
        lines = [*(f"{line}\n" for line in lines[:-1]), *lines[-1:]]
        _, ends = self.encoder.encode_pieces(lines)
        runs = split_at_lines(np.diff(ends, prepend=0).tolist())
        return [
            Document(
                id=f"{document.id}.{number}",
                text="".join(lines[start:stop]),
                domain=document.domain,
                language=document.language,
                source=document.source,
                path=document.path,
            )
            for number, (start, stop) in enumerate(runs)
        ]


def encoder_of(work: Work) -> Encoder:
    """Return the tokenizer of the build, which encodes in one thread.

    Raises:
        InputError: its file was changed.
    """
    done = work.done(Tokenizer)
    backend = work.data.build.tokenizer_backend
    return opened(done.file(work.tokenizer), done.result.xxh3_128, backend)


# probing a tokenizer takes as long as encoding some MB
@lru_cache(maxsize=1)
def opened(path: Path, digest: str, backend: Literal["auto", "fast", "reference"]) -> Encoder:
    """Return the tokenizer of a file with this hash; the last one is kept."""
    return Encoder(path, backend=backend)


def content_hash(document: Document) -> int:
    """Return what decides whether a document is held out: the same for all its exact copies, and
    for all documents of a repository."""
    if (key := repository_key(document)) is not None:
        return xxhash.xxh3_64_intdigest(key.encode())
    return xxhash.xxh3_64_intdigest(normalise(document.text.encode()))


def count(work: Work, chunk: int) -> Output:
    """Write the tokens of every document of a chunk."""
    encoding = Encoding.of(work)
    with DropList(work, Counted.stage, chunk) as drops:
        tallies = [drops.tally("dedup"), drops.tally("count")]
        kinds, entries, origins = _count(work, chunk, encoding, *tallies)
    for tally in tallies:
        tally.check()
    path = _counts_path(work, chunk)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, np.array(entries, dtype=ENTRY).tobytes())
    result = Counted(tallies, kinds, origins, drops.summary())
    return Output(result, files=[path, *drops.files], bytes_in=text_bytes(work, chunk))


def _count(
    work: Work, chunk: int, encoding: Encoding, dedup: Tally, tally: Tally
) -> tuple[list[tuple[str, str]], list[tuple[int, int, int, int, int]], Origins]:
    """Return the kinds, the entries and the origins of what is kept of a chunk."""
    kinds: dict[tuple[str, str], int] = {}
    entries: list[tuple[int, int, int, int, int]] = []
    origins = Origins()
    for batch in batches(kept(work, chunk, dedup), lambda d: len(d.text), BATCH_CHARS):
        note_changes(encoding.encoder, batch, tally)
        for document, length in zip(batch, encoding.lengths(batch), strict=True):
            kind = kinds.setdefault((document.domain, document.language), len(kinds))
            pieces, lengths = [document], [length]
            if length > MAX_DOCUMENT_TOKENS and not is_joined(document):
                pieces = encoding.split(document)
                lengths = encoding.lengths(pieces)
                tally.notes["documents_split"] += 1
                tally.notes["pieces_added"] += len(pieces) - 1
            content = content_hash(document)
            mine = [
                (content, tokens, len(piece.text.encode()), kind, number)
                for number, (piece, tokens) in enumerate(zip(pieces, lengths, strict=True))
            ]
            entries += mine
            origins.add(document, 1, sum(entry[2] for entry in mine), sum(lengths))
            tally.rows_in += 1
            tally.rows_out += 1
    return list(kinds), entries, origins


@dataclass(frozen=True)
class Counts:
    """The pieces of a chunk, which are counted."""

    entries: NDArray[np.void]
    """Of the type ENTRY, in the order of the chunk."""
    kinds: list[tuple[str, str]]
    """Domain and language of each kind."""

    @classmethod
    def of(cls, work: Work, chunk: int) -> Counts:
        """Read the counts of a chunk.

        Raises:
            InputError: they are missing or were changed.
        """
        done = work.done(Counted, chunk)
        path = done.file(_counts_path(work, chunk))
        return cls(np.fromfile(path, dtype=ENTRY), done.result.kinds)

    def of_domain(self, domain: str) -> NDArray[np.bool_]:
        """Return which entries are of a domain."""
        mine = [number for number, kind in enumerate(self.kinds) if kind[0] == domain]
        return np.isin(self.entries["kind"], mine)

    def held_out(
        self, val_fraction: float, smallest: Mapping[str, int | None]
    ) -> NDArray[np.bool_]:
        """Return which entries are held out.

        Args:
            val_fraction: Those whose hash / 2^64 is less.
            smallest: The one hash of a domain that is held out in their place, see `Planned`.
        """
        threshold = int(val_fraction * 2**64)
        if threshold >= 2**64:
            return np.ones(len(self.entries), dtype=bool)
        out: NDArray[np.bool_] = self.entries["content"] < np.uint64(threshold)
        for domain, content in smallest.items():
            if content is not None:
                is_one = self.entries["content"] == np.uint64(content)
                out = np.where(self.of_domain(domain), is_one, out)
        return out


def _counts_path(work: Work, chunk: int) -> Path:
    return work.folder / "count" / f"{chunk:05d}.npy"


def split_at_lines(
    line_tokens: Sequence[int], max_tokens: int = MAX_DOCUMENT_TOKENS
) -> list[tuple[int, int]]:
    """Cut a document into runs of whole lines, each as long as fits.

    Args:
        line_tokens: Tokens of each line.
        max_tokens: Most tokens of a part, its EOD not counted. A single longer line stays whole.

    Returns:
        (first line, line after the last) of every part; together they are all lines.
    """
    parts: list[tuple[int, int]] = []
    start = used = 0
    for line, tokens in enumerate(line_tokens):
        if line > start and used + tokens > max_tokens:
            parts.append((start, line))
            start, used = line, 0
        used += tokens
    if start < len(line_tokens):
        parts.append((start, len(line_tokens)))
    return parts

"""Documents of a chunk as token ids: counted once, and encoded again when it is known how often.

Both passes encode a document in the same way (its first copy with the same cut for filling in the
middle), so that what is planned is what comes out. A document of more than MAX_DOCUMENT_TOKENS is
split at line ends into pieces, which are selected one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.balance.quotas import Plan
from data_pipeline.balance.selection import MAX_DOCUMENT_TOKENS, select_file, split_at_lines
from data_pipeline.dedup.exact import normalise
from data_pipeline.dedup.phases import drop
from data_pipeline.schema import Document, Tally
from data_pipeline.shuffle.buckets import Record, ShuffleConfig, to_buckets
from data_pipeline.tasks.work import Work
from data_pipeline.tokenizer import fim
from data_pipeline.tokenizer.encoder import Encoder
from loopcoder.config.build import FimConfig
from loopcoder.storage.files import write_bytes

ENTRY = np.dtype(
    [("content", "<u8"), ("length", "<i4"), ("bytes", "<i4"), ("kind", "<u2"), ("piece", "<u2")]
)
"""Of a piece: hash of its document's content, tokens, UTF-8, kind (index of [domain, language]),
and its place in the document."""

_BATCH_CHARS = 1 << 20
_BUFFER_BYTES = 1 << 27


@dataclass(frozen=True)
class Encoding:
    """How documents become ids."""

    encoder: Encoder
    rules: FimConfig
    specials: fim.Specials | None

    @classmethod
    def of(cls, work: Work) -> Encoding:
        encoder = work.encoder()
        rules = work.data.build.fim
        return cls(encoder, rules, fim.Specials.of(encoder) if rules.rate else None)

    def encode(
        self, pieces: Sequence[Document], copies: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Yield (place among the pieces, ids) of each, side by side."""
        for domain in sorted({piece.domain for piece in pieces}):
            mine = [i for i, piece in enumerate(pieces) if piece.domain == domain]
            texts = [pieces[i].text for i in mine]
            if self.specials is None:
                ids, lengths = self.encoder.encode_documents(texts)
            else:
                names = [pieces[i].id for i in mine]
                numbers = [copies[i] for i in mine]
                ids, lengths = fim.apply(
                    self.encoder, texts, names, numbers, self.rules, self.specials, domain=domain
                )
            ends = np.cumsum(lengths, dtype=np.int64)
            for i, stop, length in zip(mine, ends.tolist(), lengths.tolist(), strict=True):
                yield i, ids[stop - length : stop]

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


def content_hash(document: Document) -> int:
    """Return what decides whether a document is held out: the same for all its exact copies."""
    return xxhash.xxh3_64_intdigest(normalise(document.text.encode()))


def kept(work: Work, chunk: int, tally: Tally) -> Iterator[Document]:
    """Yield the documents of a chunk that are no copies."""
    return drop(work.read(chunk), work.dedup, chunk, tally)


def counts_path(work: Work, chunk: int) -> Path:
    return work.folder / "count" / f"{chunk:05d}.npy"


def read_counts(work: Work, chunk: int) -> NDArray[np.void]:
    """Return the entries of a chunk."""
    return np.fromfile(counts_path(work, chunk), dtype=ENTRY)


def count(work: Work, chunk: int) -> dict[str, Any]:
    """Write the tokens of every document of a chunk; return tallies and kinds."""
    encoding = Encoding.of(work)
    dedup, tally = Tally("dedup"), Tally("count")
    kinds: dict[tuple[str, str], int] = {}
    entries: list[tuple[int, int, int, int, int]] = []
    for batch in _batches(kept(work, chunk, dedup), lambda document: len(document.text)):
        for document, length in zip(batch, encoding.lengths(batch), strict=True):
            kind = kinds.setdefault((document.domain, document.language), len(kinds))
            pieces, lengths = [document], [length]
            if length > MAX_DOCUMENT_TOKENS:
                pieces = encoding.split(document)
                lengths = encoding.lengths(pieces)
                tally.notes["documents_split"] += 1
                tally.notes["pieces_added"] += len(pieces) - 1
            content = content_hash(document)
            entries += [
                (content, tokens, len(piece.text.encode()), kind, number)
                for number, (piece, tokens) in enumerate(zip(pieces, lengths, strict=True))
            ]
            tally.rows_in += 1
            tally.rows_out += 1
    dedup.check()
    tally.check()
    path = counts_path(work, chunk)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, np.array(entries, dtype=ENTRY).tobytes())
    return {
        "tallies": [dedup.as_dict(), tally.as_dict()],
        "kinds": [list(kind) for kind in kinds],
        "bytes_in": sum(work.chunks[chunk].text_bytes.values()),
    }


def shuffle_config(work: Work, num_buckets: int) -> ShuffleConfig:
    """Return the config of both passes of the shuffle."""
    tokenizer = work.facts_of("tokenizer", 0)
    return ShuffleConfig(
        source=work.made_of("tokenise"),
        vocab_size=tokenizer["vocab_size"],
        eod_id=tokenizer["eod_id"],
        seq_length=work.data.seq_length,
        num_buckets=num_buckets,
        mixture=work.weights,
    )


def tokenise(work: Work, chunk: int) -> dict[str, Any]:
    """Send what the plan takes of a chunk to the buckets, and what is held out to its own."""
    planned, counted = work.facts_of("plan", 0), work.facts_of("count", chunk)
    entries = read_counts(work, chunk)
    out = is_held_out(work, entries, counted["kinds"], planned["held_out"])
    quotas = Plan.load(work.folder / "plan" / f"{chunk:05d}.json")
    kinds = [tuple(counted["kinds"][k]) for k in entries["kind"][~out].tolist()]
    copies = np.zeros(len(entries), dtype=np.int64)
    copies[~out], tally = select_file(
        quotas,
        f"{chunk:05d}",
        [(domain, language) for domain, language in kinds],
        entries["length"][~out],
    )
    encoding = Encoding.of(work)
    marker = to_buckets(
        _records(encoding, _chosen(work, chunk, encoding, entries, copies)),
        work.folder / "buckets",
        chunk,
        len(work.chunks),
        shuffle_config(work, planned["num_buckets"]),
        _BUFFER_BYTES,
    )
    wanted = int(copies.sum())
    if marker["documents"] != wanted:
        raise RuntimeError(f"{marker['documents']} documents in the buckets, {wanted} were chosen")
    held_out = to_buckets(
        _records(encoding, _held_out(work, chunk, entries, out)),
        work.folder / "held_out",
        chunk,
        len(work.chunks),
        shuffle_config(work, planned["num_held_out_buckets"]),
        _BUFFER_BYTES,
    )
    split = Tally("hold out", rows_in=len(entries), rows_out=int((~out).sum()))
    split.drops["held_out"] = int(out.sum())
    split.notes["held_out_documents"] = held_out["documents"]
    split.check()
    tokens = int((copies * entries["length"]).sum())
    used = int((copies * entries["bytes"]).sum())
    return {
        "tallies": [split.as_dict(), tally.as_dict()],
        "bytes_in": used,
        "tokens": tokens,
        "records": wanted,
    }


def is_held_out(
    work: Work,
    entries: NDArray[np.void],
    kinds: Sequence[Sequence[str]],
    smallest: dict[str, int | None],
) -> NDArray[np.bool_]:
    """Return which entries are held out: hash / 2^64 < val_fraction, or a domain's
    smallest hash."""
    threshold = int(work.data.build.val_fraction * 2**64)
    if threshold >= 2**64:
        return np.ones(len(entries), dtype=bool)
    out: NDArray[np.bool_] = entries["content"] < np.uint64(threshold)
    for domain, content in smallest.items():
        if content is not None:
            mine = [number for number, kind in enumerate(kinds) if kind[0] == domain]
            same = entries["content"] == np.uint64(content)
            out |= same & np.isin(entries["kind"], mine)
    return out


def _groups(
    work: Work, chunk: int, entries: NDArray[np.void]
) -> Iterator[tuple[Document, int, int]]:
    """Yield each document of a chunk with its entries, [start, stop)."""
    starts = np.flatnonzero(entries["piece"] == 0).tolist()
    documents = kept(work, chunk, Tally("dedup"))
    borders = itertools.pairwise([*starts, len(entries)])
    for document, (start, stop) in zip(documents, borders, strict=True):
        yield document, start, stop


def _chosen(
    work: Work,
    chunk: int,
    encoding: Encoding,
    entries: NDArray[np.void],
    copies: NDArray[np.int64],
) -> Iterator[tuple[Document, int]]:
    """Yield (piece, copy) of all that is taken of a chunk."""
    for document, start, stop in _groups(work, chunk, entries):
        if not copies[start:stop].any():
            continue
        pieces = [document] if stop - start == 1 else encoding.split(document)
        for piece, number in zip(pieces, copies[start:stop].tolist(), strict=True):
            for copy in range(1, number + 1):
                yield piece, copy


def _held_out(
    work: Work, chunk: int, entries: NDArray[np.void], out: NDArray[np.bool_]
) -> Iterator[tuple[Document, int]]:
    """Yield the documents of a chunk that are held out, whole; copy 0 is never rearranged."""
    if not out.any():
        return
    for document, start, _ in _groups(work, chunk, entries):
        if out[start]:
            yield document, 0


def _records(encoding: Encoding, chosen: Iterable[tuple[Document, int]]) -> Iterator[Record]:
    plain = Encoding(encoding.encoder, encoding.rules, None)
    for batch in _batches(chosen, lambda item: len(item[0].text)):
        pieces = [piece for piece, _ in batch]
        copies = [copy for _, copy in batch]
        how = encoding if copies[0] else plain
        for place, ids in how.encode(pieces, copies):
            piece = pieces[place]
            yield Record(ids, piece.domain, piece.language, piece.id, copies[place])


def _batches[T](items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= _BATCH_CHARS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch

"""The tokenizer of a build: trained on a sample of what is kept, or imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.chunks import Chunk, ChunkWriter, read_chunk
from data_pipeline.tasks.work import Work
from data_pipeline.tokenizer.count import content_hash, kept
from data_pipeline.tokenizer.encoder import train_tokenizer
from loopcoder.storage.files import write_bytes

_SPARE = 2
"""Documents are drawn for this many times what is wanted, since some turn out to be copies."""


def is_trained(work: Work) -> bool:
    return work.data.build.tokenizer == "train"


def sample(work: Work, chunk: int) -> dict[str, Any]:
    """Write the documents of a chunk that the tokenizer may be trained on.

    Which ones is decided by the hash of their ids against the share of its domain that is wanted.
    """
    total = _domain_bytes(work)
    wanted = _SPARE * _share(work, total)
    threshold = {domain: min(1.0, wanted / size) * 2**64 for domain, size in total.items()}
    tally = Tally("dedup")
    with ChunkWriter(work.folder / "sample", chunk, 1 << 62) as out:
        for document in kept(work, chunk, tally):
            if _order(document) < threshold[document.domain] and not _is_held_out(work, document):
                out.add(document)
    return {
        "chunks": [asdict(c) for c in out.chunks],
        "bytes_in": sum(work.chunks[chunk].text_bytes.values()),
    }


def make(work: Work, _: int) -> dict[str, Any]:
    """Write tokenizer.json."""
    work.tokenizer.parent.mkdir(parents=True, exist_ok=True)
    if not is_trained(work):
        write_bytes(work.tokenizer, Path(work.data.build.tokenizer).expanduser().read_bytes())
        return _facts(work, 0)
    share = _share(work, _domain_bytes(work))
    chosen: list[str] = []
    used = 0
    for domain in work.domains:
        left = share
        for _, text in sorted((_order(d), d.text) for d in _sampled(work) if d.domain == domain):
            if left <= 0:
                break
            chosen.append(text)
            left -= len(text.encode())
        used += share - left
    temporary = work.tokenizer.with_suffix(".tmp")
    train_tokenizer(chosen, work.data.build.tokenizer_vocab_size, temporary)
    write_bytes(work.tokenizer, temporary.read_bytes())
    temporary.unlink()
    return _facts(work, used)


def _facts(work: Work, used: int) -> dict[str, Any]:
    encoder = work.encoder()
    return {
        "xxh3_128": work.tokenizer_hash,
        "vocab_size": encoder.vocab_size,
        "eod_id": encoder.eod_id,
        "engine": encoder.engine,
        "trained": is_trained(work),
        "bytes_in": used,
    }


def _sampled(work: Work) -> Iterator[Document]:
    for facts in work.facts("sample", len(work.chunks)):
        for chunk in facts["chunks"]:
            yield from read_chunk(work.folder / "sample", Chunk(**chunk))


def _order(document: Document) -> int:
    return xxhash.xxh3_64_intdigest(document.id.encode())


def _domain_bytes(work: Work) -> dict[str, int]:
    return {
        domain: sum(chunk.text_bytes.get(domain, 0) for chunk in work.chunks)
        for domain in work.domains
    }


def _share(work: Work, total: dict[str, int]) -> int:
    """Return the bytes of each domain that are wanted."""
    return min(work.data.build.tokenizer_train_bytes // len(work.domains), max(total.values()))


def _is_held_out(work: Work, document: Document) -> bool:
    return content_hash(document) < work.data.build.val_fraction * 2**64

"""The tokenizer of a build: trained on a sample of what is kept, or imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import xxhash

from data_pipeline.repositories.chunks import kept, text_bytes
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.chunks import Chunk, ChunkWriter, read_chunk
from data_pipeline.tasks.work import Output, Result, Work
from data_pipeline.tokenizer.count import Tokenizer, content_hash, opened
from data_pipeline.tokenizer.encoder import train_tokenizer
from loopcoder.data.places import tokenizer_file
from loopcoder.storage.digest import file_digest
from loopcoder.storage.files import write_bytes

_SPARE = 2
"""Documents are drawn for this many times what is wanted, since some turn out to be copies."""


@dataclass(frozen=True)
class Sampled(Result):
    """What was drawn of a chunk."""

    stage: ClassVar[str] = "sample"
    chunks: list[Chunk]
    """In the folder of samples."""


def is_trained(work: Work) -> bool:
    return work.data.build.tokenizer == "train"


def sample(work: Work, chunk: int) -> Output:
    """Write the documents of a chunk that the tokenizer may be trained on.

    Which ones is decided by the hash of their ids against the share of its domain that is wanted.
    """
    total = _domain_bytes(work)
    wanted = _SPARE * _share(work, total)
    threshold = {domain: min(1.0, wanted / size) * 2**64 for domain, size in total.items()}
    tally = Tally("dedup")
    folder = work.folder / "sample"
    with ChunkWriter(folder, chunk, 1 << 62) as out:
        for document in kept(work, chunk, tally):
            if _order(document) < threshold[document.domain] and not _is_held_out(work, document):
                out.add(document)
    files = [folder / drawn.name for drawn in out.chunks]
    return Output(Sampled(out.chunks), files=files, bytes_in=text_bytes(work, chunk))


def make(work: Work, _: int) -> Output:
    """Write tokenizer.json."""
    work.tokenizer.parent.mkdir(parents=True, exist_ok=True)
    if not is_trained(work):
        write_bytes(work.tokenizer, tokenizer_file(Path(work.data.build.tokenizer)).read_bytes())
        return _made(work, 0)
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
    return _made(work, used)


def _made(work: Work, used: int) -> Output:
    digest = file_digest(work.tokenizer)
    encoder = opened(work.tokenizer, digest, work.data.build.tokenizer_backend)
    result = Tokenizer(
        xxh3_128=digest,
        vocab_size=encoder.vocab_size,
        eod_id=encoder.eod_id,
        eod=encoder.eod,
        normaliser=encoder.normaliser,
        engine=encoder.engine,
        trained=is_trained(work),
    )
    return Output(result, files=[work.tokenizer], bytes_in=used)


def _sampled(work: Work) -> Iterator[Document]:
    for done in work.all_done(Sampled):
        for chunk in done.result.chunks:
            yield from read_chunk(work.folder / "sample", chunk)


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

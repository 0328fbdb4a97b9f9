"""From opened sources to a complete folder: select, train a tokenizer, encode, record."""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.durable import synced_files, write_json
from data_pipeline.encoder import Encoder, train_tokenizer
from data_pipeline.ingest import Report, megabytes, select
from data_pipeline.manifest import FORMAT_VERSION, MANIFEST, TOKEN_BYTES, TOKENIZER
from data_pipeline.megatron_io import IndexedWriter
from data_pipeline.readers.base import Source
from data_pipeline.schema import SPLITS, Tally
from data_pipeline.spool import Spool
from loopcoder.checkpoint.digest import file_digest
from loopcoder.config.schema import DataConfig
from loopcoder.errors import InputError

_TRAIN_BYTES = 8_000_000
"""UTF-8 that the tokenizer is trained on, the same amount of every domain as far as there is."""
_BATCH_BYTES = 1 << 20
"""UTF-8 that is encoded at a time."""


def build(
    data: DataConfig,
    *,
    sources: Sequence[Source],
    domains: Sequence[str],
    fingerprint: str,
    folder: Path,
    report: Report,
) -> None:
    """Fill the empty `folder` with a corpus; its manifest.json comes last.

    Raises:
        InputError: a domain ends without documents to train on, or the tokenizer does not fit.
        OSError: the disk is full or fails.
    """
    with contextlib.ExitStack() as stack:
        spools = {}
        for domain in domains:
            spools[domain] = Spool(folder / f"spool-{domain}.tmp")
            stack.callback(spools[domain].close)
        tallies = select(sources, spools, report)
        parts = {domain: spool.split(data.val_fraction) for domain, spool in spools.items()}
        for domain, split in parts.items():
            split_tally = Tally(
                f"split {domain}", len(spools[domain]), sum(map(len, split.values()))
            )
            split_tally.check()
            tallies.append(split_tally)
        encoder = _tokenizer(data, spools, parts, folder / TOKENIZER, report)
        stats = {}
        for domain, spool in spools.items():
            stats[domain] = {
                split: _encode(
                    spool, parts[domain][split], encoder, folder / f"{domain}_{split}", report
                )
                for split in SPLITS
            }
            (folder / f"spool-{domain}.tmp").unlink()
    # through a buffer: on a full disk np.save raises an OSError without errno
    buffer = io.BytesIO()
    np.save(buffer, encoder.token_bytes)
    (folder / TOKEN_BYTES).write_bytes(buffer.getvalue())
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": data.name,
        "fingerprint": fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.argv),
        "versions": _versions(),
        "sources": [_described(source) for source in sources],
        "val_fraction": data.val_fraction,
        "stages": [tally.as_dict() for tally in tallies],
        "tokenizer": {
            "file": TOKENIZER,
            "xxh3_128": file_digest(folder / TOKENIZER),
            "vocab_size": encoder.vocab_size,
            "eod_id": encoder.eod_id,
            "engine": encoder.engine,
            "trained": data.tokenizer == "train",
        },
        "domains": stats,
    }
    _seal(folder, manifest)


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Sync every file to disk, then write the manifest with their sizes and hashes."""
    manifest["files"] = synced_files(folder)
    write_json(folder / MANIFEST, manifest)


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "tokenizers", "xxhash")}
    return {"python": sys.version.split()[0]} | packages


def _described(source: Source) -> dict[str, Any]:
    config = source.config
    return {
        "name": source.name,
        "kind": config.kind,
        "path": config.path,
        "domain": config.domain,
        "max_documents": config.max_documents,
        "max_bytes": config.max_bytes,
    }


def _tokenizer(
    data: DataConfig,
    spools: dict[str, Spool],
    parts: dict[str, dict[str, Any]],
    path: Path,
    report: Report,
) -> Encoder:
    """Train or copy the tokenizer to `path`."""
    start = time.monotonic()
    if data.tokenizer != "train":
        original = Path(data.tokenizer).expanduser()
        Encoder(original, backend=data.tokenizer_backend)
        shutil.copyfile(original, path)
        return Encoder(path, backend=data.tokenizer_backend)
    share = min(_TRAIN_BYTES // len(spools), max(s.num_bytes for s in spools.values()))
    used = 0

    def texts() -> Iterator[str]:
        nonlocal used
        for domain, spool in spools.items():
            left = share
            for batch, sizes, _ in spool.batches(parts[domain]["train"], _BATCH_BYTES):
                if left <= 0:
                    break
                left -= int(sizes.sum())
                used += int(sizes.sum())
                yield from batch

    train_tokenizer(texts(), data.tokenizer_vocab_size, path)
    encoder = Encoder(path, backend=data.tokenizer_backend)
    report(
        f"data: trained a tokenizer of {encoder.vocab_size:,} ids on {megabytes(used)} "
        f"in {time.monotonic() - start:.1f} s"
    )
    return encoder


def _encode(
    spool: Spool, documents: Any, encoder: Encoder, prefix: Path, report: Report
) -> dict[str, Any]:
    """Write one `.bin/.idx` and return its statistics."""
    start = time.monotonic()
    if not len(documents):
        raise InputError.of(
            f"{prefix.name} would be empty",
            "every domain needs documents to train on and to hold out",
            "data.val_fraction=0.02, or more documents",
        )
    tally = Tally(f"encode {prefix.name}", rows_in=len(documents))
    # rows: languages; columns: documents, tokens, bytes
    counts = np.zeros((len(spool.languages), 3), dtype=np.int64)
    writer = IndexedWriter(prefix, encoder.vocab_size)
    try:
        for texts, sizes, languages in spool.batches(documents, _BATCH_BYTES):
            ids, lengths = encoder.encode_documents(texts)
            writer.append(ids, lengths)
            tally.rows_out += len(texts)
            np.add.at(counts, languages, np.stack([np.ones_like(sizes), lengths, sizes], axis=1))
        writer.finish()
    finally:
        writer.close()
    tally.check()
    num_documents, tokens, num_bytes = (int(n) for n in counts.sum(axis=0))
    report(
        f"data: encoded {prefix.name}: {num_documents:,} documents, {tokens:,} tokens, "
        f"{megabytes(num_bytes)} in {time.monotonic() - start:.1f} s"
    )
    keys = ("documents", "tokens", "utf8_bytes")
    by_language = {
        name: dict(zip(keys, map(int, row), strict=True))
        for name, row in zip(spool.languages, counts, strict=True)
        if row[0]
    }
    most = sorted(by_language.items(), key=lambda item: (-item[1]["tokens"], item[0]))
    return {
        "prefix": prefix.name,
        "documents": num_documents,
        "tokens": tokens,
        "utf8_bytes": num_bytes,
        "languages": dict(most),
    }

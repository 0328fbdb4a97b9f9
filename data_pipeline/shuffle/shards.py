"""Pass two of the global shuffle: from buckets of documents to the shards that training reads.

`assemble` (a task a bucket) writes one Megatron `.bin/.idx` pair a domain of every bucket, `seal`
records all of it, `concatenate` writes the held-out documents.

    OUT/text-00003.bin .idx               one shard; code-00003 has as many sequences
    OUT/shard-00003.json                  done marker of the bucket, written last
    OUT/shards.json                       the manifest, when all shards are there

The cut. All shards have the same size: with T_s tokens of domain s, B buckets, sequences of L
tokens and the mixture a_s in lowest terms, u = min_s floor((T_s // B - 1) / (L a_s)), and a shard
of domain s has u a_s sequences: exactly u a_s L + 1 tokens (the last label included). A shard
takes its own bucket in hash order. What a bucket has too much goes to those that have too little,
in the order of their numbers; what then remains is dropped and counted. A document that lies across
the end of a shard or of a bucket's part is cut there, its last token within becoming an EOD, so
that every entry of an index still ends in one EOD.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.schema import Tally
from data_pipeline.shuffle.bucket_index import BucketIndex, not_done
from data_pipeline.shuffle.buckets import (
    FORMAT_VERSION,
    Bucket,
    ShuffleConfig,
    index_of,
    sizes_of,
)
from data_pipeline.tasks.markers import disk_errors, read_marker, write_marker
from loopcoder.data.indexed import IndexedWriter
from loopcoder.errors import InputError
from loopcoder.storage.files import sync_folder, synced_entry, write_json

SHARDS = "shards.json"


_Block = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]
"""Ids of some documents, the length and the kind of each."""


class Piece(NamedTuple):
    """Tokens [start, stop) of one domain of a bucket in hash order."""

    bucket: int
    start: int
    stop: int


def cut(
    tokens: Mapping[str, Sequence[int]], seq_length: int, weights: Mapping[str, int]
) -> dict[str, list[list[Piece]]]:
    """Return, by domain, the pieces of buckets that make up each shard.

    Args:
        tokens: Tokens of every bucket, by domain.
        seq_length: Tokens of a sequence.
        weights: Sequences of each domain in lowest terms.

    Raises:
        InputError: a shard would have no sequence.
    """
    shards = len(next(iter(tokens.values())))
    unit = min((sum(tokens[s]) // shards - 1) // (seq_length * w) for s, w in weights.items())
    if unit < 1:
        needed = {s: shards * (seq_length * w + 1) for s, w in weights.items()}
        raise InputError.of(
            f"the domains have { ({d: sum(tokens[d]) for d in weights}) } tokens, {shards} shards",
            f"with one sequence of {seq_length} in a shard and the mixture {dict(weights)} they "
            f"need {needed}",
            "data.build.shards=1, a shorter data.seq_length, or more documents",
        )
    pieces = {}
    for domain, weight in weights.items():
        size = unit * weight * seq_length + 1
        sizes = tokens[domain]
        spare = [[b, size, n] for b, n in enumerate(sizes) if n > size]
        pieces[domain] = [[Piece(b, 0, min(n, size))] if n else [] for b, n in enumerate(sizes)]
        for bucket, shard in enumerate(pieces[domain]):
            missing = size - min(sizes[bucket], size)
            while missing:
                source = spare[0]
                taken = min(missing, source[2] - source[1])
                shard.append(Piece(source[0], source[1], source[1] + taken))
                source[1] += taken
                missing -= taken
                if source[1] == source[2]:
                    spare.pop(0)
    return pieces


def assemble(
    bucket: int,
    folder: Path,
    out: Path,
    config: ShuffleConfig,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Write the shards of one bucket; one that is done is not written again.

    Args:
        bucket: Number of the bucket and of its shards.
        folder: Where all ranks of pass a are done.
        out: Folder of the shards, the same for all buckets.
        config: The same as in pass a, but for seq_length and the proportions of the mixture.
        memory_bytes: Of this task; the bucket must fit in half of it. None: of the machine.

    Returns:
        The content of the done marker.

    Raises:
        InputError: pass a is not done or was altered, a document came twice, the bucket is too
            large, there are too few documents, or the disk is full.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"shard-{bucket:05}.json"
        done = read_marker(path, config.fingerprint)
        if done is not None:
            sizes = {name: entry["bytes"] for name, entry in done["files"].items()}
            if sizes_of(out, sizes) == sizes:
                return done
            path.unlink()
        index = index_of(folder, config)
        pieces = cut(index.tokens, config.seq_length, config.weights)
        own = Bucket(bucket, index, config, memory_bytes or _physical_memory())
        files: dict[str, Any] = {}
        domains = {}
        for domain in config.weights:
            stats = _write_shard(domain, pieces[domain][bucket], own, index, out, config)
            # the parts that are used follow each other from the start of a bucket
            used = max(
                (p.stop for shard in pieces[domain] for p in shard if p.bucket == bucket), default=0
            )
            domains[domain] = stats | own.losses(domain, used)
            for suffix in (".bin", ".idx"):
                file = out / (stats["prefix"] + suffix)
                files[file.name] = synced_entry(file)
        sync_folder(out)
        return write_marker(path, config.fingerprint, bucket=bucket, domains=domains, files=files)


def _write_shard(
    domain: str,
    pieces: Sequence[Piece],
    own: Bucket,
    index: BucketIndex,
    out: Path,
    config: ShuffleConfig,
) -> dict[str, Any]:
    """Write one `.bin/.idx` and return its statistics."""

    def blocks() -> Iterator[_Block]:
        for piece in pieces:
            foreign = piece.bucket != own.number
            source = Bucket(piece.bucket, index, config) if foreign else own
            yield from source.read(domain, piece.start, piece.stop)

    stats = _write_pair(out / f"{domain}-{own.number:05}", blocks(), own.kinds, config)
    return stats | {"sequences": (stats["tokens"] - 1) // config.seq_length}


def _write_pair(
    prefix: Path,
    blocks: Iterable[_Block],
    kinds: Sequence[tuple[str, str]],
    config: ShuffleConfig,
) -> dict[str, Any]:
    """Write documents as `.bin/.idx`, each ended by EOD, and return their statistics."""
    counts = np.zeros((len(kinds), 2), dtype=np.int64)
    overwritten = 0
    writer = IndexedWriter(prefix, config.vocab_size)
    try:
        for ids, lengths, of_kind in blocks:
            last = np.cumsum(lengths) - 1
            overwritten += int((ids[last] != config.eod_id).sum())
            ids[last] = config.eod_id
            writer.append(ids, lengths)
            np.add.at(counts, of_kind, np.stack([np.ones_like(lengths), lengths], axis=1))
        writer.finish()
    finally:
        writer.close()
    documents, tokens = counts.sum(axis=0).tolist()
    return {
        "prefix": prefix.name,
        "documents": documents,
        "tokens": tokens,
        "overwritten_tokens": overwritten,
        "languages": {
            kinds[i][1]: {"documents": row[0], "tokens": row[1]}
            for i, row in enumerate(counts.tolist())
            if row[0]
        },
    }


def concatenate(folder: Path, prefix: Path, domain: str, config: ShuffleConfig) -> dict[str, Any]:
    """Write all documents of a domain, bucket after bucket, as one `.bin/.idx`.

    Nothing is cut or left over: this is for documents that are held out.

    Args:
        folder: Where all ranks of pass a are done.
        prefix: Path to write, without suffix.
        domain: Domain of the documents.
        config: The same as in pass a.

    Returns:
        Documents, tokens and languages.

    Raises:
        InputError: pass a is not done or was altered, or the disk is full.
    """
    index = index_of(folder, config)

    def blocks() -> Iterator[_Block]:
        for number in range(config.num_buckets):
            bucket = Bucket(number, index, config)
            yield from bucket.read(domain, 0, bucket.losses(domain, 0)["tokens_in"])

    with disk_errors(prefix.parent):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        return _write_pair(prefix, blocks(), index.kinds, config)


def seal(
    out: Path,
    config: ShuffleConfig,
    wanted_shares: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Write the manifest of the finished shards and return it.

    Args:
        out: Folder of the shards.
        config: That they were made with.
        wanted_shares: Share of every language in its domain (Plan.shares); validated against.

    Raises:
        InputError: a shard is missing or of another config, or the disk is full.
        RuntimeError: documents or tokens were lost or invented, a bug.
    """
    shards, missing = [], []
    for bucket in range(config.num_buckets):
        marker = read_marker(out / f"shard-{bucket:05}.json", config.fingerprint)
        if marker is None:
            missing.append(bucket)
        else:
            shards.append(marker)
    if missing:
        raise not_done("shards", missing, config.num_buckets, out)
    domains, tallies = {}, []
    for domain, weight in config.weights.items():
        stats = [marker["domains"][domain] for marker in shards]
        total = {
            key: sum(s[key] for s in stats) for key in stats[0] if isinstance(stats[0][key], int)
        }
        if total["tokens_in"] != total["tokens"] + total["tokens_dropped"]:
            raise RuntimeError(f"shuffle of {domain}: tokens do not add up: {total}")
        kept = total["documents_in"] - total["documents_dropped"]
        tally = Tally(f"shuffle {domain}", rows_in=total["documents_in"], rows_out=kept)
        tally.drops["left_over"] = total["documents_dropped"]
        tally.notes["tokens_left_over"] = total["tokens_dropped"]
        tally.notes["cut_in_two"] = total["documents"] - kept
        tally.notes["last_token_replaced_by_eod"] = total["overwritten_tokens"]
        tally.check()
        tallies.append(tally.as_dict())
        languages: dict[str, Counter[str]] = {}
        for s in stats:
            for language, numbers in s["languages"].items():
                languages.setdefault(language, Counter()).update(numbers)
        by_tokens = sorted(languages.items(), key=lambda item: (-item[1]["tokens"], item[0]))
        domains[domain] = {
            "weight": weight,
            "documents": total["documents"],
            "tokens": total["tokens"],
            "sequences": total["sequences"],
            "languages": {language: dict(numbers) for language, numbers in by_tokens},
        }
    prefixes = [
        {"prefix": marker["domains"][domain]["prefix"], "domain": domain, "weight": weight}
        | {key: marker["domains"][domain][key] for key in ("documents", "tokens", "sequences")}
        for marker in shards
        for domain, weight in config.weights.items()
    ]
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": config.fingerprint,
        "source": config.source,
        "seed": config.seed,
        "vocab_size": config.vocab_size,
        "eod_id": config.eod_id,
        "seq_length": config.seq_length,
        "num_shards": config.num_buckets,
        "stages": tallies,
        "domains": domains,
        "wanted_shares": wanted_shares,
        "blend": prefixes,
        "files": {name: entry for marker in shards for name, entry in marker["files"].items()},
    }
    with disk_errors(out):
        write_json(out / SHARDS, manifest)
    return manifest


def blend(out: Path, manifest: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """Return the prefixes and weights for megatron-core's blend: text, code, text, code, ...

    In this order and with these weights, every even batch is exactly half code for the mixture
    1 : 1, and all shards end together, after one epoch.
    """
    total = sum(entry["weight"] for entry in manifest["blend"])
    return (
        [str(out / entry["prefix"]) for entry in manifest["blend"]],
        [entry["weight"] / total for entry in manifest["blend"]],
    )


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

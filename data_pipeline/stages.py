"""The stages of a corpus, in order; each is a function of (work, task) that returns its facts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from typing import Any

from data_pipeline.balance.plan import make_plan
from data_pipeline.dedup import phases as near_dedup
from data_pipeline.readers.base import judge_end, judge_files
from data_pipeline.readers.ingest import check_domains, read_part
from data_pipeline.schema import Tally
from data_pipeline.shuffle.buckets import index_of
from data_pipeline.shuffle.shards import assemble, concatenate, seal
from data_pipeline.shuffle.validate import SHARE_TOLERANCE, validate
from data_pipeline.tasks.chunks import Chunk
from data_pipeline.tasks.work import Work
from data_pipeline.tokenizer.count import count, shuffle_config, tokenise
from data_pipeline.tokenizer.train import is_trained, make, sample
from loopcoder.errors import InputError
from loopcoder.storage.files import write_bytes


@dataclass(frozen=True)
class Stage:
    """One stage: its tasks depend on stages before it only, and not on each other."""

    name: str
    title: str
    """What it does, for people."""
    run: Callable[[Work, int], dict[str, Any]]
    tasks: Callable[[Work], int]
    after: Callable[[Work], None] | None = None
    """Run once by the driver when all tasks are done."""


def num_parts(work: Work) -> int:
    return len(list((work.folder / "parts").glob("*.pkl")))


def _num_chunks(work: Work) -> int:
    return len(work.chunks)


def _num_buckets(work: Work) -> int:
    return int(work.facts_of("plan", 0)["num_buckets"])


def _after_reading(work: Work) -> None:
    """Number the chunks; refuse an input of which nothing is left, or too much was damaged."""
    facts = work.facts("read", num_parts(work))
    by_source: dict[str, Tally] = {}
    files: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for entry in facts:
        tally = by_source.setdefault(entry["source"], Tally("ingest"))
        tally.add(entry["tallies"][0])
        files[entry["source"]] += entry["files"]
        for part in entry["tallies"]:
            reasons.update(part["drops"])
            reasons.update(part["file_drops"])
    for source, tally in by_source.items():
        judge_end(tally, source)
        judge_files(tally, files[source], source)
    chunks = [Chunk(**chunk) for entry in facts for chunk in entry["chunks"]]
    text_bytes: Counter[str] = Counter()
    for chunk in chunks:
        text_bytes.update(chunk.text_bytes)
    check_domains(
        work, text_bytes, ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    )
    path = work.folder / "chunks.json"
    write_bytes(path, json.dumps([astuple(chunk) for chunk in chunks]).encode())


def _sign(work: Work, chunk: int) -> dict[str, Any]:
    inputs = [work.fingerprint, asdict(work.chunks[chunk])]
    documents = near_dedup.sign(
        work.read(chunk), work.dedup, chunk, work.minhash, json.dumps(inputs)
    )
    return {"documents": documents, "bytes_in": sum(work.chunks[chunk].text_bytes.values())}


def _match(work: Work, index: int) -> dict[str, Any]:
    return {"pairs": near_dedup.match(work.dedup, index, len(work.chunks), work.minhash)}


def _cluster(work: Work, _: int) -> dict[str, Any]:
    return {"drops": dict(near_dedup.cluster(work.dedup, len(work.chunks), work.minhash))}


def _after_tokenising(work: Work) -> None:
    """Collect the files of every bucket, once for all tasks that read them."""
    index_of(work.folder / "buckets", shuffle_config(work, _num_buckets(work)))


def _assemble(work: Work, bucket: int) -> dict[str, Any]:
    marker = assemble(
        bucket,
        work.folder / "buckets",
        work.corpus / "train",
        shuffle_config(work, _num_buckets(work)),
        work.data.build.worker_bytes,
    )
    tokens = sum(domain["tokens"] for domain in marker["domains"].values())
    return {"tokens": tokens, "bytes_in": sum(f["bytes"] for f in marker["files"].values())}


def _hold_out(work: Work, index: int) -> dict[str, Any]:
    domain = work.domains[index]
    config = shuffle_config(work, work.facts_of("plan", 0)["num_held_out_buckets"])
    stats = concatenate(work.folder / "held_out", work.corpus / "val" / domain, domain, config)
    return {"domain": domain} | stats


def _validate(work: Work, _: int) -> dict[str, Any]:
    planned = work.facts_of("plan", 0)
    folder = work.corpus / "train"
    manifest = seal(folder, shuffle_config(work, planned["num_buckets"]), planned["shares"])
    tolerance = max(SHARE_TOLERANCE, _grain(work))
    problems = validate(folder, tolerance=tolerance)
    if problems:
        raise InputError(problems)
    kept = {k: v for k, v in manifest.items() if k not in ("files", "wanted_shares")}
    return {"share_tolerance": tolerance, "shards": kept}


def _grain(work: Work) -> float:
    """Return the share of a domain that one document may be: no corpus is balanced finer."""
    planned = work.facts_of("plan", 0)
    largest: dict[str, int] = {
        domain: 2 ** (max(i for i, n in enumerate(counts) if n) + 1)
        for domain, counts in planned["lengths"].items()
    }
    grains = [
        (largest[domain] + work.data.seq_length * weight * planned["num_buckets"])
        / (planned["tokens"] * weight / sum(work.weights.values()))
        for domain, weight in work.weights.items()
    ]
    return float(max(grains))


def _one(_: Work) -> int:
    return 1


STAGES = (
    Stage(
        "read",
        "ingest, clean, decontaminate, label",
        read_part,
        num_parts,
        _after_reading,
    ),
    Stage("sign", "hash and sign documents", _sign, _num_chunks),
    Stage("match", "find copies", _match, lambda work: near_dedup.num_matches(work.minhash)),
    Stage("cluster", "choose which copy stays", _cluster, _one),
    Stage(
        "sample",
        "draw text for the tokenizer",
        sample,
        lambda work: len(work.chunks) if is_trained(work) else 0,
    ),
    Stage("tokenizer", "make the tokenizer", make, _one),
    Stage("count", "count tokens", count, _num_chunks),
    Stage("plan", "plan the shares", make_plan, _one),
    Stage("tokenise", "tokenise into buckets", tokenise, _num_chunks, _after_tokenising),
    Stage("assemble", "shuffle and write shards", _assemble, _num_buckets),
    Stage("hold_out", "write held-out documents", _hold_out, lambda work: len(work.domains)),
    Stage("validate", "validate", _validate, _one),
)
"""In the order in which they run."""

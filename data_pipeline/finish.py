"""The last steps of a build: the manifest, which names every file, written last."""

from __future__ import annotations

import io
import itertools
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.readers.base import Source
from data_pipeline.readers.ingest import STAGES as READING
from data_pipeline.report import write_report
from data_pipeline.schema import Tally
from data_pipeline.stages import STAGES
from data_pipeline.tasks.progress import total_cost
from data_pipeline.tasks.work import Work
from loopcoder.data.corpus import FORMAT_VERSION, load_corpus
from loopcoder.data.corpus_files import MANIFEST, REPORT, TOKEN_BYTES, TOKENIZER
from loopcoder.storage.digest import fingerprint
from loopcoder.storage.files import synced_entry, write_bytes, write_json

_PACKAGES = (
    *("numpy", "tokenizers", "xxhash", "fastokens", "rensa", "datatrove", "enry-python"),
    *("zstandard", "orjson", "pyarrow", "datasets"),
)


def finish(work: Work, sources: Sequence[Source]) -> None:
    """Add the tokenizer to the folder of the corpus, and seal it with its manifest."""
    folder = work.corpus
    shutil.copyfile(work.tokenizer, folder / TOKENIZER)
    # through a buffer: on a full disk np.save raises an OSError without errno
    buffer = io.BytesIO()
    np.save(buffer, work.encoder().token_bytes)
    write_bytes(folder / TOKEN_BYTES, buffer.getvalue())
    for marker in folder.glob("train/shard-*.json"):
        marker.unlink()
    manifest = _manifest(work, sources)
    manifest["files"] = {
        str(path.relative_to(folder)): synced_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != REPORT
    }
    # left out of the files: it is for people, and may be written anew
    write_report(manifest, folder / REPORT)
    write_json(folder / MANIFEST, manifest)


def report_of(folder: Path) -> Path:
    """Write the report of a finished corpus anew and return its path."""
    corpus = load_corpus(folder, "size")
    return write_report(corpus.manifest, corpus.dir / REPORT)


def _manifest(work: Work, sources: Sequence[Source]) -> dict[str, Any]:
    planned = work.facts_of("plan", 0)
    validated = work.facts_of("validate", 0)
    shards = validated["shards"]
    tokenizer = work.facts_of("tokenizer", 0)
    tallies = _tallies(work, shards)
    return {
        "format_version": FORMAT_VERSION,
        "name": work.data.name,
        "fingerprint": work.fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.argv),
        "versions": _versions(),
        "sources": [_described(source) for source in sources],
        "config": _config(work),
        "val_fraction": work.data.build.val_fraction,
        "seq_length": work.data.seq_length,
        "weights": work.weights,
        "stages": [tally.as_dict() for tally in tallies],
        "duplicates": dict(work.facts_of("cluster", 0)["drops"]),
        "costs": _costs(work),
        "tokenizer": {
            "file": TOKENIZER,
            "xxh3_128": tokenizer["xxh3_128"],
            "vocab_size": tokenizer["vocab_size"],
            "eod_id": tokenizer["eod_id"],
            "engine": work.encoder().engine,
            "trained": tokenizer["trained"],
        },
        "plan": {key: planned[key] for key in ("tokens", "largest_tokens", "languages")},
        "lengths": planned["lengths"],
        "domains": {domain: _domain(work, shards, domain) for domain in work.domains},
        "num_shards": shards["num_shards"],
        "share_tolerance": validated["share_tolerance"],
    }


def _domain(work: Work, shards: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """Describe the two splits of a domain: its shards, and what is held out."""
    (held,) = [
        facts for facts in work.facts("hold_out", len(work.domains)) if facts["domain"] == domain
    ]
    keys = ("documents", "tokens", "languages")
    train = shards["domains"][domain]
    mine = [entry for entry in shards["blend"] if entry["domain"] == domain]
    return {
        "train": {
            **{key: train[key] for key in (*keys, "sequences")},
            "shards": [
                {
                    "prefix": f"train/{e['prefix']}",
                    "documents": e["documents"],
                    "tokens": e["tokens"],
                }
                for e in mine
            ],
        },
        "val": {
            **{key: held[key] for key in keys},
            "shards": [
                {
                    "prefix": f"val/{held['prefix']}",
                    "documents": held["documents"],
                    "tokens": held["tokens"],
                }
            ],
        },
    }


def _tallies(work: Work, shards: Mapping[str, Any]) -> list[Tally]:
    """Return the sum of the tallies of every stage, checked, and checked against each other."""
    per_stage: dict[str, Tally] = {}
    readings: dict[str, Tally] = {}
    tasks = {stage.name: stage.tasks(work) for stage in STAGES}
    for stage in ("read", "count", "tokenise"):
        for facts in work.facts(stage, tasks[stage]):
            for part in facts["tallies"]:
                name = part["stage"]
                if name in ("ingest", "select"):
                    of_source = f"{name} {facts['source']}"
                    readings.setdefault(of_source, Tally(of_source)).add(part)
                per_stage.setdefault(name, Tally(name)).add(part)
    shuffled = []
    for entry in shards["stages"]:
        tally = Tally(entry["stage"])
        tally.add(entry)
        shuffled.append(tally)
    for tally in (*per_stage.values(), *shuffled):
        tally.check()
    _check_rows(per_stage, shuffled)
    rest = [tally for name, tally in per_stage.items() if name not in ("ingest", "select")]
    return [*readings.values(), *rest, *shuffled]


def _check_rows(tallies: Mapping[str, Tally], shuffled: Sequence[Tally]) -> None:
    """Raise RuntimeError unless every stage takes in what the one before it hands on."""
    order = [*READING, "dedup", "count"]
    pairs = [(a, tallies[a].rows_out, b, tallies[b].rows_in) for a, b in itertools.pairwise(order)]
    counted, held, chosen = tallies["count"], tallies["hold out"], tallies["quota"]
    pieces = counted.rows_out + counted.notes["pieces_added"]
    pairs += [
        ("count", pieces, "hold out", held.rows_in),
        ("hold out", held.rows_out, "select", chosen.rows_in),
        (
            "select",
            chosen.rows_out + chosen.notes["copies"],
            "shuffle",
            sum(tally.rows_in for tally in shuffled),
        ),
    ]
    for before, handed, after, taken in pairs:
        if handed != taken:
            raise RuntimeError(f"{before} hands on {handed} rows, {after} takes in {taken}")


def _costs(work: Work) -> list[dict[str, Any]]:
    """Return what every stage cost; reading by its parts."""
    found = []
    for stage in STAGES:
        facts = work.facts(stage.name, stage.tasks(work))
        size = sum(f.get("bytes_in", 0) for f in facts)
        cost = {"stage": stage.name, **total_cost([f["cost"] for f in facts], size)}
        if stage.name == "read":
            parts: Counter[str] = Counter()
            text: Counter[str] = Counter()
            for entry in facts:
                parts.update(entry["cpu_s"])
                text.update(entry["text_bytes"])
            cost["parts"] = {name: round(seconds, 3) for name, seconds in parts.items()}
            cost["text_chars_out"] = dict(text)
        found.append(cost)
    return found


def _described(source: Source) -> dict[str, Any]:
    config = source.config
    return {
        "name": source.name,
        "kind": config.kind,
        "path": config.path,
        "domain": config.domain,
        "max_documents": config.max_documents,
        "max_bytes": config.max_bytes,
        "licence": config.licence,
        "input_xxh3_128": fingerprint(source.identity),
        "inputs": len(source.identity),
        **source.provenance,
    }


def _config(work: Work) -> dict[str, Any]:
    """Return the settings of the stages, for the report."""
    names = ("filters", "near_dedup", "decontaminate", "fim", "shares", "epochs", "target_tokens")
    plain = asdict(work.data.build)
    return {name: plain[name] for name in names}


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "platform": sys.platform}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

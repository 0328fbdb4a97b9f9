"""What the manifests of all corpora say, of documents and of conversations."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_pipeline.dedup.stages import Clustered
from data_pipeline.readers.ingest import Listed, Read
from data_pipeline.schema import Tally
from data_pipeline.tasks.chunks import PACKED
from data_pipeline.tasks.dropped import FOLDER, Dropped, total_dropped
from data_pipeline.tasks.progress import total_cost
from data_pipeline.tasks.work import Cost, Result, Work
from data_pipeline.tokenizer.count import Tokenizer
from loopcoder.data.manifest import FORMAT_VERSION
from loopcoder.data.places import TOKEN_BYTES, TOKENIZER
from loopcoder.storage.files import FileEntry, synced_entry

_PACKAGES = (
    *("numpy", "tokenizers", "xxhash", "fastokens", "rensa", "datatrove", "enry-python"),
    *("zstandard", "orjson", "pyarrow", "datasets", "transformers", "jinja2"),
)


def common(work: Work, kinds: Sequence[type[Result]]) -> dict[str, Any]:
    """Return the entries that every manifest has.

    Args:
        kinds: Of all stages, in their order.
    """
    tokenizer = work.result(Tokenizer)
    return {
        "format_version": FORMAT_VERSION,
        "name": work.data.corpus_name,
        "fingerprint": work.fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(sys.argv),
        "versions": _versions(),
        "sources": work.result(Listed).sources,
        "val_fraction": work.data.build.val_fraction,
        "seq_length": work.data.seq_length,
        "weights": work.weights,
        "duplicates": work.result(Clustered).drops,
        "costs": [_cost(work, kind) for kind in kinds if any(work.all_done(kind))],
        "tokenizer": {
            "file": TOKENIZER,
            "xxh3_128": tokenizer.xxh3_128,
            "vocab_size": tokenizer.vocab_size,
            "eod_id": tokenizer.eod_id,
            "eod": tokenizer.eod,
            "normaliser": tokenizer.normaliser,
            "engine": tokenizer.engine,
            "trained": tokenizer.trained,
        },
    }


def settings(work: Work, names: Iterable[str]) -> dict[str, Any]:
    """Return some settings of the stages, for the report."""
    plain = asdict(work.data.build)
    return {name: plain[name] for name in names}


def split_entry(split: str, total: Any, shards: Sequence[Any]) -> dict[str, Any]:
    """Describe a split of a domain.

    Args:
        split: `train` or `val`.
        total: What all of it comes to: documents, tokens, languages and labels.
        shards: Prefix, documents and tokens of each.
    """
    return {
        "documents": total.documents,
        "tokens": total.tokens,
        "languages": total.languages,
        "labels": [
            {"label": number, "documents": documents, "tokens": tokens}
            for number, (documents, tokens) in sorted(total.labels.items())
        ],
        "shards": [
            {
                "prefix": f"{split}/{shard.prefix}",
                "documents": shard.documents,
                "tokens": shard.tokens,
            }
            for shard in shards
        ],
    }


def file_entries(work: Work, kinds: Iterable[type[Result]]) -> Iterator[tuple[str, FileEntry]]:
    """Yield every file of the corpus but manifest and report; what was hashed is not read again.

    Args:
        kinds: Of the stages that write there.
    """
    corpus = f"{work.corpus.name}/"
    for kind in kinds:
        for done in work.all_done(kind):
            for name, entry in done.files.items():
                if name.startswith(corpus):
                    yield name.removeprefix(corpus), entry
    for name in (TOKENIZER, TOKEN_BYTES):
        yield name, synced_entry(work.corpus / name)


def dropped_entry(parts: Iterable[Dropped]) -> dict[str, Any]:
    """Return the entry of the manifest on what was left out."""
    total = total_dropped(iter(parts))
    return {
        "about": f"{FOLDER}/*.jsonl.{PACKED}: a line of JSON for every document and file that was "
        "left out, with stage, reason, source, path, row, bytes; of a copy what stays in its place",
        "listed": total.listed,
        "entries": total.entries,
        "reasons": [
            {
                "stage": stage,
                "unit": unit,
                "reason": reason,
                "number": number,
                "examples": total.examples.get(f"{stage}/{reason}", []),
            }
            for stage, unit, reason, number in total.counts
        ],
        "unknown_suffixes": total.suffixes,
    }


class Tallies:
    """The tallies of all tasks, by step; those of reading by source as well."""

    def __init__(self, work: Work) -> None:
        self.total: dict[str, Tally] = {}
        self._of_source: dict[str, Tally] = {}
        for read in work.all_done(Read):
            self.add(read.result.tallies)
            for tally in read.result.tallies[:2]:
                name = f"{tally.stage} {read.result.source}"
                self._of_source.setdefault(name, Tally(name)).add(tally)

    def add(self, tallies: Iterable[Tally]) -> None:
        """Add those of a task."""
        for tally in tallies:
            self.total.setdefault(tally.stage, Tally(tally.stage)).add(tally)

    def checked(self, reading: Sequence[str]) -> list[Tally]:
        """Return them all, after a check of each.

        Args:
            reading: Of the steps of reading; the first two are given by source.
        """
        for tally in self.total.values():
            tally.check()
        rest = [tally for name, tally in self.total.items() if name not in reading[:2]]
        return [*self._of_source.values(), *rest]


def check_chain(pairs: Iterable[tuple[str, int, str, int]]) -> None:
    """Raise RuntimeError unless every step takes in what the one before it hands on.

    Args:
        pairs: A step, the rows that it hands on, the next one, and the rows that it takes in.
    """
    for before, handed, after, taken in pairs:
        if handed != taken:
            raise RuntimeError(f"{before} hands on {handed} rows, {after} takes in {taken}")


def _cost(work: Work, kind: type[Result]) -> dict[str, Any]:
    """Return what a stage cost; reading by its steps."""
    costs: list[Cost] = []
    steps: Counter[str] = Counter()
    text: Counter[str] = Counter()
    on_disk = 0
    for done in work.all_done(kind):
        costs.append(done.cost)
        if isinstance(done.result, Read):
            steps.update(done.result.cpu_s)
            text.update(done.result.text_chars)
            on_disk += done.result.bytes_on_disk
    cost = {"stage": kind.stage, **total_cost(costs)}
    if steps:
        cost["parts"] = {name: round(seconds, 3) for name, seconds in steps.items()}
        cost["text_chars_out"] = dict(text)
        cost["bytes_on_disk"] = on_disk
    return cost


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "platform": sys.platform}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

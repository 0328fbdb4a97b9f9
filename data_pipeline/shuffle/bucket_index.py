"""What the ranks of pass a wrote, turned round: the files of every bucket.

A rank's marker names its file in each bucket. Every task of pass b needs the files of its own
bucket from all ranks; reading all markers for that would be more than the memory of a task in a
large corpus, thousands of ranks times thousands of buckets. So they are read once.

    FOLDER/index/bucket-00003.jsonl   a line a file: name, what the rank's marker says, its kinds
    FOLDER/index/index.json           marker: kinds of documents, tokens of every bucket by domain
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.tasks.markers import read_marker, write_marker
from loopcoder.errors import InputError
from loopcoder.storage.files import sync, sync_folder
from loopcoder.storage.lock import hold

_MARKER = "index.json"
_BUFFER_BYTES = 1 << 25
"""Of lines that are not written yet."""


@dataclass(frozen=True)
class BucketIndex:
    """Where the documents of each bucket are."""

    folder: Path
    kinds: list[tuple[str, str]]
    """Domain and language of documents, in the order of the kinds in `files`."""
    tokens: dict[str, list[int]]
    """Tokens of every bucket, by domain."""

    def files(self, bucket: int) -> Iterator[tuple[Path, dict[str, Any], list[int]]]:
        """Yield each file of a bucket, its entry in the marker, and the index in `kinds` of each
        kind that is written in it."""
        path = self.folder / "index" / _name(bucket)
        if path.exists():
            with open(path, encoding="utf-8") as file:
                for line in file:
                    name, entry, kinds = json.loads(line)
                    yield self.folder / name, entry, kinds


def open_index(folder: Path, made_of: str, domains: Sequence[str], num_buckets: int) -> BucketIndex:
    """Return the index of a folder of buckets, after making it if it is not there.

    One task makes it, others wait for it.

    Args:
        folder: Of the buckets.
        made_of: Fingerprint that the markers of the ranks must have.
        domains: Of the corpus.
        num_buckets: Of the corpus.

    Raises:
        InputError: a rank is not done, or ranks of different runs lie there.
    """
    path = folder / "index" / _MARKER
    marker = read_marker(path, made_of)
    if marker is None:
        folder.mkdir(parents=True, exist_ok=True)
        with hold(folder / "index.lock", lambda _: None):
            if not path.exists():
                _make(folder, made_of, domains, num_buckets)
        marker = read_marker(path, made_of)
        assert marker is not None
    return BucketIndex(folder, [(s, language) for s, language in marker["kinds"]], marker["tokens"])


def drop_index(folder: Path) -> None:
    """Forget the index: a rank is about to be done anew."""
    shutil.rmtree(folder / "index", ignore_errors=True)


def _make(folder: Path, made_of: str, domains: Sequence[str], num_buckets: int) -> None:
    num_ranks, kinds = _check(folder, made_of)
    number = {kind: i for i, kind in enumerate(kinds)}
    tokens = {domain: [0] * num_buckets for domain in domains}
    temporary = folder / "index.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    waiting: dict[int, list[str]] = {}
    size = 0

    def flush() -> None:
        for bucket, lines in waiting.items():
            with open(temporary / _name(bucket), "a", encoding="utf-8") as file:
                file.writelines(lines)
        waiting.clear()

    for rank in range(num_ranks):
        marker = _rank(folder, rank, made_of)
        own_kinds = [number[s, language] for s, language in marker["kinds"]]
        for name, entry in marker["files"].items():
            bucket = int(name.split("/")[0].removeprefix("bucket-"))
            line = json.dumps([name, entry, own_kinds]) + "\n"
            waiting.setdefault(bucket, []).append(line)
            size += len(line)
            for domain, count in entry["tokens"].items():
                tokens[domain][bucket] += count
        if size > _BUFFER_BYTES:
            flush()
            size = 0
    flush()
    for path in temporary.iterdir():
        with open(path, "rb") as file:
            sync(file)
    write_marker(temporary / _MARKER, made_of, num_ranks=num_ranks, kinds=kinds, tokens=tokens)
    temporary.rename(folder / "index")
    sync_folder(folder)


def _check(folder: Path, made_of: str) -> tuple[int, list[tuple[str, str]]]:
    """Return the number of ranks, all of which are done, and the kinds of their documents."""
    found: dict[int, int] = {}
    kinds: set[tuple[str, str]] = set()
    for path in sorted(folder.glob("rank-*.json")):
        marker = _rank(folder, int(path.stem[5:]), made_of)
        found[int(path.stem[5:])] = marker["num_ranks"]
        kinds |= {(s, language) for s, language in marker["kinds"]}
    numbers = sorted(set(found.values()))
    if len(numbers) > 1:
        raise other_ranks(folder, *numbers[:2])
    num_ranks = numbers[0] if numbers else 1
    missing = [rank for rank in range(num_ranks) if rank not in found]
    if missing:
        raise not_done("ranks of pass a", missing, num_ranks, folder)
    return num_ranks, sorted(kinds)


def _rank(folder: Path, rank: int, made_of: str) -> dict[str, Any]:
    marker = read_marker(folder / f"rank-{rank:05}.json", made_of)
    if marker is None:
        raise not_done("ranks of pass a", [rank], rank + 1, folder)
    return marker


def _name(bucket: int) -> str:
    return f"bucket-{bucket:05}.jsonl"


def not_done(what: str, missing: Sequence[int], total: int, folder: Path) -> InputError:
    """Return the error that tasks of a pass are missing."""
    some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    return InputError.of(
        f"{len(missing)} of {total} {what} are not done in {folder}: {some}",
        "where a document goes depends on all of them",
        "run these tasks; those that are done are skipped",
    )


def other_ranks(path: Path, found: int, wanted: int) -> InputError:
    """Return the error that two runs with different numbers of ranks met."""
    return InputError.of(
        f"{path} is from a run of {found} ranks, this one has {wanted}",
        "ranks of two runs hold other parts of the documents: some would come twice, some never",
        f"num_ranks={found}, or delete the folder of the buckets",
    )

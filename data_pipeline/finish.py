"""The last stage of a build: the manifest, which names every file, written last."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.balance.plan import Planned
from data_pipeline.manifest_parts import (
    Tallies,
    check_chain,
    common,
    dropped_entry,
    file_entries,
    settings,
    split_entry,
)
from data_pipeline.origins import origins_of
from data_pipeline.readers.ingest import TALLIES, Read
from data_pipeline.report import write_report
from data_pipeline.report.dropped import suffixes_in_words, warnings_of
from data_pipeline.report.repositories import in_words
from data_pipeline.repositories.stages import STAGE as REPOSITORIES
from data_pipeline.repositories.stages import Joined, JoinedNumbered, Scattered, is_on
from data_pipeline.schema import Tally
from data_pipeline.sealing import Finished, seal
from data_pipeline.shuffle.frequencies import counts_file
from data_pipeline.shuffle.shards import total_of
from data_pipeline.shuffle.stages import (
    Assembled,
    BucketsIndexed,
    Checked,
    HeldOut,
    Tokenised,
)
from data_pipeline.shuffle.validate import SHARE_TOLERANCE
from data_pipeline.tasks.origins import Origins
from data_pipeline.tasks.work import Output, Result, Work
from data_pipeline.tokenizer.count import Counted, Tokenizer
from loopcoder.data.corpus import REPORT, UNIGRAM_ENTROPY, load_corpus
from loopcoder.data.manifest import MANIFEST
from loopcoder.data.unigram import unigram_entropy
from loopcoder.errors import InputError
from loopcoder.storage.disk import is_disk_full

_SETTINGS = (
    *("filters", "near_dedup", "decontaminate", "fim", "repository"),
    *("shares", "epochs", "target_tokens"),
)


def finish(work: Work, kinds: Sequence[type[Result]]) -> Output:
    """Add the tokenizer to the folder of the corpus, and seal it with its manifest.

    Args:
        work: All stages before this one are done.
        kinds: Of these stages, in their order.

    Raises:
        InputError: the corpus is not what it should be.
    """
    manifest = seal(work, partial(_manifest, work, kinds))
    told = [
        *in_words(manifest),
        *(f"warning: {warning}" for warning in _of_repositories(work)),
        *suffixes_in_words(manifest["dropped"]["unknown_suffixes"]),
        *(f"warning: {warning}" for warning in warnings_of(manifest["origins"])),
    ]
    return Output(Finished(told), files=[work.corpus / MANIFEST])


def report_of(folder: Path) -> Path:
    """Write the report of a finished corpus anew and return its path.

    Raises:
        InputError: the corpus is damaged, or nothing can be written there.
    """
    corpus = load_corpus(folder, "size")
    try:
        return write_report(corpus.manifest, corpus.dir / REPORT)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputError.of(
            f"cannot write {corpus.dir / REPORT}: {error.strerror or error}",
            "the report lies in the folder of its corpus: this user may not write there, something "
            "is in its way, or the disk is read-only",
            f"the same command as the owner of {corpus.dir}, or on a copy of it; "
            "loopcoder data show CORPUS writes nothing",
        ) from error


def _of_repositories(work: Work) -> list[str]:
    return work.result(JoinedNumbered).warnings if is_on(work) else []


def _manifest(work: Work, kinds: Sequence[type[Result]]) -> dict[str, Any]:
    planned = work.result(Planned)
    shards = [done.result.shards for done in work.all_done(Assembled)]
    totals = {domain: total_of(domain, [s[domain] for s in shards]) for domain in work.domains}
    prefixes = {domain: [s[domain].written for s in shards] for domain in work.domains}
    held = {done.result.domain: done.result.written for done in work.all_done(HeldOut)}
    tallies = _tallies(work, [total.tally for total in totals.values()])
    kept = Origins.total(done.result.origins for done in work.all_done(Counted))
    taken = Origins.total(done.result.origins for done in work.all_done(Tokenised))
    return {
        **common(work, kinds),
        "config": settings(work, _SETTINGS),
        "stages": [tally.as_dict() for tally in tallies],
        "origins": origins_of(work, kept, taken),
        "dropped": dropped_entry(
            itertools.chain(
                (done.result.dropped for done in work.all_done(Read)),
                (done.result.dropped for done in work.all_done(Counted)),
                (done.result.dropped for done in work.all_done(Tokenised)),
                (done.result.dropped for done in work.all_done(Assembled)),
            )
        ),
        **({"repositories": work.result(JoinedNumbered).counts} if is_on(work) else {}),
        "plan": {
            "tokens": planned.tokens,
            "largest_tokens": planned.largest_tokens,
            "languages": planned.languages,
        },
        "lengths": planned.lengths,
        "labels": work.result(BucketsIndexed).labels,
        "domains": {
            domain: {
                "train": split_entry("train", totals[domain], prefixes[domain])
                | {"sequences": totals[domain].sequences},
                "val": split_entry("val", held[domain], [held[domain]]),
            }
            for domain in work.domains
        },
        **_unigram_entropy(work),
        "num_shards": len(shards),
        "share_tolerance": max(SHARE_TOLERANCE, _grain(work, planned, len(shards))),
        "files": dict(sorted(file_entries(work, (Assembled, HeldOut, Read, Counted, Tokenised)))),
    }


def _unigram_entropy(work: Work) -> dict[str, Any]:
    """Return the entry of the manifest; none if a part was built before tokens were counted."""
    shape = len(work.domains), work.result(Tokenizer).vocab_size
    train = np.zeros(shape, dtype=np.int64)
    for bucket, checked in enumerate(work.all_done(Checked)):
        if not checked.files:
            return {}
        train += np.load(checked.file(counts_file(work, "train", bucket)), allow_pickle=False)
    found = {}
    for index, held in enumerate(work.all_done(HeldOut)):
        path = counts_file(work, "val", index)
        if str(path.relative_to(work.folder)) not in held.files:
            return {}
        val = np.load(held.file(path), allow_pickle=False)
        found[held.result.domain] = unigram_entropy(train[index], val)
    return {UNIGRAM_ENTROPY: found}


def _grain(work: Work, planned: Planned, num_shards: int) -> float:
    """Return the share of a domain that one document may be: no corpus is balanced finer."""
    largest: dict[str, int] = {
        domain: 2 ** (max(i for i, n in enumerate(counts) if n) + 1)
        for domain, counts in planned.lengths.items()
    }
    return max(
        (largest[domain] + work.data.seq_length * weight * num_shards)
        / (planned.tokens * weight / sum(work.weights.values()))
        for domain, weight in work.weights.items()
    )


def _tallies(work: Work, shuffled: Sequence[Tally]) -> list[Tally]:
    """Return the sum of the tallies of every step, checked, and checked against each other."""
    tallies = Tallies(work)
    tallies.total["dedup"] = Tally("dedup")  # before what comes of it
    for scattered in work.all_done(Scattered):
        tallies.add([scattered.result.tally])
    for joined in work.all_done(Joined):
        tallies.add([joined.result.tally])
    for counted in work.all_done(Counted):
        tallies.add(counted.result.tallies)
    for tokenised in work.all_done(Tokenised):
        tallies.add(tokenised.result.tallies)
    for tally in shuffled:
        tally.check()
    _check_rows(tallies.total, shuffled)
    return [*tallies.checked(TALLIES), *shuffled]


def _check_rows(tallies: Mapping[str, Tally], shuffled: Sequence[Tally]) -> None:
    """Raise RuntimeError unless every step takes in what the one before it hands on."""
    order = [*TALLIES, "dedup"]
    pairs = [(a, tallies[a].rows_out, b, tallies[b].rows_in) for a, b in itertools.pairwise(order)]
    counted, held, chosen = tallies["count"], tallies["hold out"], tallies["quota"]
    joined = tallies.get(REPOSITORIES, Tally(REPOSITORIES)).notes
    documents = tallies["dedup"].rows_out - joined["files_joined"] + joined["documents"]
    pairs.append(("dedup", documents, "count", counted.rows_in))
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
    check_chain(pairs)

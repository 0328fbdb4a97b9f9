"""A finished corpus against its manifest, and against what training takes for granted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopcoder.data.corpus import load_corpus
from loopcoder.data.indexed import check_pair, chunks_of, lengths_of, token_dtype
from loopcoder.data.labels import LABELS, Label, LabelFile, LabelWriter
from loopcoder.data.manifest import MANIFEST
from loopcoder.data.mask import check_packing
from loopcoder.data.places import rebuild
from loopcoder.errors import InputError, Problem, counted

MAX_DOCUMENTS = 2**31 - 1
"""Of one prefix; megatron-core numbers them in int32 and wraps without a word."""

SHARE_TOLERANCE = 1e-3
"""Largest difference of a language's share from the wanted one: 0.1 percentage points."""


def validate_corpus(folder: Path) -> list[Problem]:
    """Return everything that is wrong with a finished corpus; reads every byte."""
    try:
        corpus = load_corpus(folder)
    except InputError as error:
        return error.problems
    problems: list[Problem] = []
    for domain in corpus.domains:
        for split in ("train", "val"):
            for shard in corpus.manifest["domains"][domain][split]["shards"]:
                prefix, named = corpus.dir / shard["prefix"], (shard["documents"], shard["tokens"])
                fix = rebuild(folder)
                problems += pair_problems(prefix, named, corpus.vocab_size, corpus.eod_id, fix)
                if "packed" in corpus.manifest:
                    length = corpus.manifest["packed"]["seq_length"]
                    problems += packing_problems(prefix, named, length, fix)
                if corpus.has_labels:
                    problems += label_problems(prefix, named, corpus.labels, domain, fix)
    return [*problems, *manifest_problems(folder, corpus.manifest, rebuild(folder))]


def manifest_problems(folder: Path, manifest: Mapping[str, Any], fix: str) -> list[Problem]:
    """Return what is wrong with a corpus by its manifest and the names of its files alone.

    Args:
        folder: Of the corpus.
        manifest: As it stands in the folder, or will.
        fix: Of damage.
    """
    try:
        return [
            *_names(folder, manifest, fix),
            *_proportions(folder, manifest, fix),
            *_sums(folder, manifest, fix),
            *_shares(folder, manifest),
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        why = f"an entry is missing or of the wrong kind: {e!r}"
        return [Problem(f"{folder / MANIFEST} was altered", why, fix)]


def pair_problems(
    prefix: Path,
    named: tuple[int, int],
    vocab_size: int,
    eod_id: int,
    fix: str,
    counts: NDArray[np.int64] | None = None,
) -> Iterator[Problem]:
    """Yield what is wrong with the content of one shard, which no hash of our own can tell.

    Args:
        prefix: Path of the shard without suffix.
        named: The documents and tokens that it should have.
        vocab_size: Of the tokenizer.
        eod_id: Of the tokenizer.
        fix: Of every problem.
        counts: How often each id is in a sound shard is added to it. [vocab_size]
    """
    try:
        found = check_pair(prefix, vocab_size=vocab_size, eod_id=eod_id)
    except (ValueError, OSError) as e:
        yield Problem(f"{prefix.parent}: {e}", "index and data differ", fix)
        return
    documents = found[0]
    if documents > MAX_DOCUMENTS:
        why = f"megatron-core numbers the documents of a prefix up to {MAX_DOCUMENTS:,}"
        yield Problem(f"{prefix} has {documents:,} documents", why, "a larger data.build.shards")
    if found != named:
        fact = f"{prefix} has (documents, tokens) {found}"
        yield Problem(fact, f"{named} were written", fix)
    ends, lowest, highest = 0, 0, 0
    path = prefix.with_name(prefix.name + ".bin")
    for ids in chunks_of(path, token_dtype(vocab_size)):
        ends += int(np.count_nonzero(ids == eod_id))
        lowest, highest = min(lowest, int(ids.min())), max(highest, int(ids.max()))
        if counts is not None and lowest >= 0 and highest < vocab_size:
            counts += np.bincount(ids, minlength=vocab_size)
    # every document ends in one, so there are more exactly if one is inside
    if ends != documents:
        why = "an EOD inside a document ends it for the masks but not for the index"
        yield Problem(
            f"{path} has {counted(ends, 'EOD')} in {counted(documents, 'document')}", why, fix
        )
    if lowest < 0 or highest >= vocab_size:
        why = f"the vocabulary has the ids 0 to {vocab_size - 1}"
        yield Problem(f"{path} has ids from {lowest} to {highest}", why, fix)


def packing_problems(
    prefix: Path, named: tuple[int, int], seq_length: int, fix: str
) -> Iterator[Problem]:
    """Yield what is wrong with the sequences of a packed shard, or their mask.

    Args:
        prefix: Path of the shard without suffix; its index is sound.
        named: The documents and tokens that it has.
        seq_length: Tokens of a sequence.
        fix: Of every problem.
    """
    try:
        check_packing(prefix, *named, seq_length)
    except (ValueError, OSError) as e:
        why = "sequences are whole conversations, with a mask of what is trained"
        yield Problem(f"{prefix.parent}: {e}", why, fix)


def label_problems(
    prefix: Path, named: tuple[int, int], labels: Sequence[Label], domain: str, fix: str
) -> Iterator[Problem]:
    """Yield what is wrong with the labels of a shard whose index is sound.

    Args:
        prefix: Path of the shard without suffix.
        named: The documents and tokens that it has.
        labels: Of the corpus.
        domain: Of the shard.
        fix: Of every problem.
    """
    path = prefix.with_name(prefix.name + LABELS)
    writer, first = LabelWriter(len(labels)), 0
    found: set[int] = set()
    try:
        file = LabelFile(path, *named, len(labels), None, fix)
        for lengths in lengths_of(prefix, named[0]):
            numbers = file.of_documents(first, first + len(lengths))
            writer.append(lengths, numbers)
            found |= set(np.unique(numbers).tolist())
            first += len(lengths)
        agrees = writer.content() == path.read_bytes()
    except InputError as e:
        yield from e.problems
        return
    except OSError as e:
        yield Problem(f"{path} cannot be read: {e.strerror or e}", "its shard has labels", fix)
        return
    if others := {labels[number].domain for number in found} - {domain}:
        why = f"its shard is of {domain}"
        yield Problem(f"{path} has labels of {', '.join(sorted(others))}", why, fix)
    if not agrees:
        why = "the first document of a sequence is found by these counts"
        yield Problem(f"{path} counts other documents than its index", why, fix)


def _names(folder: Path, manifest: Mapping[str, Any], fix: str) -> Iterator[Problem]:
    """Compare the names of the shards with those of the files, named and there."""
    named = {name for name in manifest["files"] if name.endswith((".bin", ".idx"))}
    shards = {
        shard["prefix"] + suffix
        for splits in manifest["domains"].values()
        for split in splits.values()
        for shard in split["shards"]
        for suffix in (".bin", ".idx")
    }
    for name in sorted(named ^ shards):
        why = "every shard is a pair of files with their hashes"
        yield Problem(f"{name} is only in one of files and shards of {MANIFEST}", why, fix)
    there = {str(p.relative_to(folder)) for end in ("bin", "idx") for p in folder.rglob(f"*.{end}")}
    for name in sorted(there - named):
        why = "a corpus holds nothing that its manifest does not name"
        yield Problem(f"{folder / name} is not in {MANIFEST}", why, f"delete {folder / name}")


def _proportions(folder: Path, manifest: Mapping[str, Any], fix: str) -> Iterator[Problem]:
    """Check that shard after shard has the proportions of the mixture."""
    weights, length = manifest["weights"], manifest["seq_length"]
    sequences = {
        shard["prefix"]: (domain, (shard["tokens"] - 1) // length)
        for domain in weights
        for shard in manifest["domains"][domain]["train"]["shards"]
    }
    shares = {count / weights[domain] for domain, count in sequences.values()}
    # a packed corpus is of one domain, so that its shards may be of any size
    if len(shares) != 1 and "packed" not in manifest:
        some = dict(list(sequences.items())[:8])
        yield Problem(
            f"the shards of {folder} have other proportions than {weights}: {some} ...",
            "shards that end early are read twice while others are not read to their end",
            fix,
        )
    for domain in weights:
        train = manifest["domains"][domain]["train"]
        total = sum(count for of, count in sequences.values() if of == domain)
        if (len(train["shards"]), total) != (manifest["num_shards"], train["sequences"]):
            yield Problem(
                f"{folder} has {counted(len(train['shards']), 'shard')} of {domain} with "
                f"{counted(total, 'sequence')}",
                f"{MANIFEST} says {manifest['num_shards']} with {train['sequences']:,} in all",
                fix,
            )


def _sums(folder: Path, manifest: Mapping[str, Any], fix: str) -> Iterator[Problem]:
    for domain, splits in manifest["domains"].items():
        for split, stats in splits.items():
            rows = {"languages": stats["languages"].values()}
            if "labels" in manifest:
                rows["labels"] = stats["labels"]
            for name, key in itertools.product(rows, ("documents", "tokens")):
                total = sum(row[key] for row in rows[name])
                if total != stats[key]:
                    fact = f"the {name} of {domain} ({split}) in {folder} have {total:,} {key}"
                    yield Problem(fact, f"{MANIFEST} says {stats[key]:,} in all", fix)


def _shares(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Compare the share of every language with what was planned."""
    if "packed" in manifest:  # conversations are taken as they come
        return
    tolerance = manifest["share_tolerance"]
    planned: dict[str, dict[str, float]] = {domain: {} for domain in manifest["weights"]}
    for row in manifest["plan"]["languages"]:
        planned[row["domain"]][row["language"]] = row["share"]
    for domain, wanted in planned.items():
        stats = manifest["domains"][domain]["train"]
        for language in sorted(set(wanted) | set(stats["languages"])):
            share = stats["languages"].get(language, {"tokens": 0})["tokens"] / stats["tokens"]
            asked = wanted.get(language, 0.0)
            if abs(share - asked) > tolerance:
                yield Problem(
                    f"{language} has {share:.3%} of {domain} in {folder}, planned are {asked:.3%}",
                    f"the difference may be {tolerance:.3%}",
                    "larger data.build.part_bytes, or more input",
                )

"""A finished set of shards against its manifest, and against what training takes for granted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.shuffle.buckets import FORMAT_VERSION
from data_pipeline.shuffle.shards import SHARDS
from loopcoder.data.corpus import Verify, check_file, load_corpus
from loopcoder.data.indexed import check_pair, chunks_of, token_dtype
from loopcoder.errors import InputError, Problem

MAX_DOCUMENTS = 2**31 - 1
"""Of one prefix; megatron-core numbers them in int32 and wraps without a word."""

SHARE_TOLERANCE = 1e-3
"""Largest difference of a language's share from the wanted one: 0.1 percentage points."""


def validate(
    folder: Path, *, verify: Verify = "hash", tolerance: float = SHARE_TOLERANCE
) -> list[Problem]:
    """Return everything that is wrong with a folder of shards.

    Args:
        folder: Holds shards.json.
        verify: `hash` reads every byte; `size` compares sizes, indices and counts only.
        tolerance: Of the shares that the manifest names as wanted.
    """
    fix = f"delete the corpus that {folder} belongs to and build it again"
    path = folder / SHARDS
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            why = f"this code reads version {FORMAT_VERSION}"
            return [Problem(f"{path} has format_version {version}", why, "build the shards again")]
        return [
            *_files(folder, manifest, verify, fix),
            *_pairs(folder, manifest, verify, fix),
            *_balance(folder, manifest),
            *_shares(folder, manifest, tolerance),
        ]
    except FileNotFoundError:
        why = "it is written last, when all shards are there"
        return [Problem(f"there is no {path}", why, "assemble every bucket, then seal")]
    except (OSError, ValueError) as e:
        return [Problem(f"cannot read {path}", str(e), f"delete it and seal {folder} again")]
    except (KeyError, TypeError, AttributeError) as e:
        why = f"an entry is missing or of the wrong kind: {e!r}"
        return [Problem(f"{path} was altered", why, f"delete it and seal {folder} again")]


def validate_corpus(folder: Path) -> list[Problem]:
    """Return everything that is wrong with a finished corpus; reads every byte."""
    try:
        corpus = load_corpus(folder)
    except InputError as error:
        return error.problems
    found = validate(corpus.dir / "train", tolerance=float(corpus.manifest["share_tolerance"]))
    shards = json.loads((corpus.dir / "train" / SHARDS).read_text(encoding="utf-8"))
    for key in ("vocab_size", "eod_id"):
        if shards[key] != corpus.manifest["tokenizer"][key]:
            found.append(
                Problem(
                    f"the shards of {folder} have {key}={shards[key]}, its tokenizer "
                    f"{corpus.manifest['tokenizer'][key]}",
                    "they were made with another tokenizer",
                    f"delete {folder} and build it again",
                )
            )
    return found


def _files(folder: Path, manifest: Mapping[str, Any], verify: str, fix: str) -> Iterator[Problem]:
    files = manifest["files"]
    for name, wanted in files.items():
        problem = check_file(folder / name, wanted, verify, fix)
        if problem is not None:
            yield problem
    expected = {entry["prefix"] + end for entry in manifest["blend"] for end in (".bin", ".idx")}
    present = {p.name for p in folder.iterdir() if p.suffix in (".bin", ".idx")}
    for name in sorted(present - set(files)):
        why = "a folder of shards holds nothing that its manifest does not name"
        yield Problem(f"{folder / name} is not in {SHARDS}", why, f"delete {folder / name}")
    for name in sorted(expected ^ set(files)):
        why = "every shard of the blend is a pair of files with their hashes"
        yield Problem(f"{name} is only in one of files and blend of {SHARDS}", why, fix)


def _pairs(folder: Path, manifest: Mapping[str, Any], verify: str, fix: str) -> Iterator[Problem]:
    """Check what a hash of the manifest's own making cannot: that the content is sound."""
    for entry in manifest["blend"]:
        prefix = folder / entry["prefix"]
        try:
            documents, tokens = check_pair(
                prefix,
                vocab_size=manifest["vocab_size"],
                eod_id=manifest["eod_id"],
                read_ends=verify == "hash",
            )
        except (ValueError, OSError) as e:
            yield Problem(f"{folder}: {e}", "index and data differ", fix)
            continue
        if documents > MAX_DOCUMENTS:
            why = f"megatron-core numbers the documents of a prefix up to {MAX_DOCUMENTS:,}"
            yield Problem(f"{prefix} has {documents:,} documents", why, "more buckets")
        sequences = (tokens - 1) // manifest["seq_length"]
        found = {"documents": documents, "tokens": tokens, "sequences": sequences}
        named = {key: entry[key] for key in found}
        if found != named:
            yield Problem(f"{prefix} has {found}", f"{SHARDS} says {named}", fix)
        if verify == "hash":
            yield from _ids(prefix, documents, manifest, fix)


def _ids(prefix: Path, documents: int, manifest: Mapping[str, Any], fix: str) -> Iterator[Problem]:
    path = prefix.with_name(prefix.name + ".bin")
    vocab_size, eod_id = manifest["vocab_size"], manifest["eod_id"]
    ends, lowest, highest = 0, 0, 0
    for chunk in chunks_of(path, token_dtype(vocab_size)):
        ends += int(np.count_nonzero(chunk == eod_id))
        lowest, highest = min(lowest, int(chunk.min())), max(highest, int(chunk.max()))
    # every document ends in one, so there are more exactly if one is inside
    if ends != documents:
        why = "an EOD inside a document ends it for the masks but not for the index"
        yield Problem(f"{path} has {ends:,} EODs in {documents:,} documents", why, fix)
    if lowest < 0 or highest >= vocab_size:
        why = f"the vocabulary has the ids 0 to {vocab_size - 1}"
        yield Problem(f"{path} has ids from {lowest} to {highest}", why, fix)


def _balance(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Check the proportions of the domains, and the order of the blend."""
    fix = f"delete the corpus that {folder} belongs to and build it again"
    weights = {domain: stats["weight"] for domain, stats in manifest["domains"].items()}
    order = [entry["domain"] for entry in manifest["blend"]]
    if order != list(weights) * manifest["num_shards"]:
        yield Problem(
            f"the blend of {folder} does not list {', '.join(weights)} in turn",
            "only then has every batch the proportions of the mixture",
            fix,
        )
    units = {
        (entry["sequences"] / weights[entry["domain"]], entry["weight"] / weights[entry["domain"]])
        for entry in manifest["blend"]
    }
    if len(units) != 1:
        some = {entry["prefix"]: entry["sequences"] for entry in manifest["blend"][:8]}
        yield Problem(
            f"the shards of {folder} have other proportions than {weights}: {some} ...",
            "shards that end early are read twice while others are not read to their end",
            fix,
        )
    for domain, stats in manifest["domains"].items():
        mine = [entry for entry in manifest["blend"] if entry["domain"] == domain]
        for key in ("documents", "tokens", "sequences"):
            total = sum(entry[key] for entry in mine)
            if total != stats[key]:
                fact = f"the shards of {domain} in {folder} have {total:,} {key}"
                yield Problem(fact, f"{SHARDS} says {stats[key]:,} in all", fix)
        for key in ("documents", "tokens"):
            total = sum(language[key] for language in stats["languages"].values())
            if total != stats[key]:
                fact = f"the languages of {domain} in {folder} have {total:,} {key}"
                yield Problem(fact, f"{SHARDS} says {stats[key]:,} in all", fix)


def _shares(folder: Path, manifest: Mapping[str, Any], tolerance: float) -> Iterator[Problem]:
    for domain, wanted in (manifest["wanted_shares"] or {}).items():
        stats = manifest["domains"][domain]
        languages = stats["languages"]
        for language in sorted(set(wanted) | set(languages)):
            share = languages.get(language, {"tokens": 0})["tokens"] / stats["tokens"]
            asked = wanted.get(language, 0.0)
            if abs(share - asked) > tolerance:
                yield Problem(
                    f"{language} has {share:.3%} of {domain} in {folder}, planned are {asked:.3%}",
                    f"the difference may be {tolerance:.3%}",
                    "select from larger input files or a larger corpus, or a larger tolerance",
                )

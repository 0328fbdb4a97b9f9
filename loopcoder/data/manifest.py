"""What a corpus' manifest must have for training to read it: entries and their kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loopcoder.config.mixture import CORPUS_EACH
from loopcoder.data.labels import LABELS
from loopcoder.errors import InputError

EACH = "*"
"""In place of a name: every entry of a mapping, of which there is one or more."""

_SPLIT = {
    "documents": int,
    "tokens": int,
    "shards": [{"prefix": str, "documents": int, "tokens": int}],
}
_NEEDED: dict[str, Any] = {
    "fingerprint": str,
    "tokenizer": {"xxh3_128": str, "vocab_size": int, "eod_id": int},
    "domains": {EACH: {"train": _SPLIT, "val": _SPLIT}},
    "files": {EACH: {"bytes": int, "xxh3_128": str}},
}
_SPLIT_LABELS = {"labels": [{"label": int, "documents": int, "tokens": int}]}
_LABELS = {
    "labels": [[str]],
    "domains": {EACH: {"train": _SPLIT_LABELS, "val": _SPLIT_LABELS}},
}
"""Of a corpus that keeps what each document is."""
_KINDS = {int: "a whole number", str: "text", float: "a number", dict: "a mapping", list: "a list"}


def head_faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the entries that are read before a corpus is opened."""
    yield from _faults(manifest, {"fingerprint": str, "domains": {}}, "")
    vocab_size = {"vocab_size": int}
    yield from _faults(manifest.get("tokenizer", {"vocab_size": 0}), vocab_size, "tokenizer")


def manifest_faults(manifest: Mapping[str, Any], tokenizer: str) -> list[str]:
    """Return everything that is missing in a manifest, of the wrong kind, or at odds.

    Args:
        manifest: In the words of this version.
        tokenizer: Name of the tokenizer's file.
    """
    faults = list(_faults(manifest, _NEEDED, ""))
    return faults or list(_odds(manifest, tokenizer))


def _faults(value: Any, wanted: Any, name: str) -> Iterator[str]:
    """Compare a value with what it should be: a type, a list of something, or a mapping."""
    kind = wanted if isinstance(wanted, type) else type(wanted)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        yield f"{name or 'it'} is {value!r:.40}, not {_KINDS[kind]}"
    elif isinstance(wanted, list):
        for index, entry in enumerate(value):
            yield from _faults(entry, wanted[0], f"{name}.{index}")
    elif isinstance(wanted, dict):
        prefix = f"{name}." if name else ""
        if EACH in wanted:
            if not value:
                yield f"{name} has no entries"
            wanted = dict.fromkeys(value, wanted[EACH])
        for key, inner in wanted.items():
            if key not in value:
                yield f"{prefix}{key} is missing"
            else:
                yield from _faults(value[key], inner, f"{prefix}{key}")


def _odds(manifest: Mapping[str, Any], tokenizer: str) -> Iterator[str]:
    """Yield what of a manifest, whose entries are all there, does not fit together."""
    if tokenizer not in manifest["files"]:
        yield f"files lacks {tokenizer}"
    elif manifest["files"][tokenizer]["xxh3_128"] != manifest["tokenizer"]["xxh3_128"]:
        yield f"files and tokenizer have other hashes of {tokenizer}"
    size, eod = manifest["tokenizer"]["vocab_size"], manifest["tokenizer"]["eod_id"]
    if not 0 <= eod < size:
        yield f"tokenizer.eod_id is {eod}, of {size} tokens"
    suffixes = (".bin", ".idx", LABELS) if "labels" in manifest else (".bin", ".idx")
    for domain, splits in manifest["domains"].items():
        for split in ("train", "val"):
            for shard in splits[split]["shards"]:
                for suffix in suffixes:
                    if shard["prefix"] + suffix not in manifest["files"]:
                        yield f"files lacks {shard['prefix']}{suffix}, a shard of {domain}"
    if "labels" in manifest:
        yield from _label_faults(manifest)
    if "unigram_entropy" in manifest:
        wanted = {"unigram_entropy": dict.fromkeys(manifest["domains"], float)}
        yield from _faults(manifest, wanted, "")


def _label_faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the labels of a corpus that has them."""
    faults = list(_faults(manifest, _LABELS, ""))
    yield from faults
    if faults:
        return
    labels = manifest["labels"]
    for number, label in enumerate(labels):
        if len(label) != 3 or label[0] not in manifest["domains"]:
            yield f"labels.{number} is {label}, not a domain, a language and a source"
    for domain, splits in manifest["domains"].items():
        for split in ("train", "val"):
            for row in splits[split]["labels"]:
                if not (0 <= row["label"] < len(labels) and labels[row["label"]][0] == domain):
                    yield f"{domain} {split} has the label {row['label']}, which is none of its own"


def check_domains(folder: Path, manifest: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Raise InputError unless a corpus has every domain that a mixture names."""
    there = list(manifest["domains"])
    if missing := [domain for domain in wanted if domain not in there]:
        why, fix = "data.mixture draws from every domain that it names", ""
        if kind := next(filter(None, (_mixed_in(manifest, name) for name in missing)), None):
            why = f"{kind}, and its documents lie mixed with others in the shards of this corpus"
            fix = f"{CORPUS_EACH}, or "
        raise InputError.of(
            f"corpus {folder} has {' and '.join(there)}, not {' or '.join(missing)}",
            why,
            f"{fix}'data.mixture={{{','.join(f'{d}:1' for d in there)}}}'",
        )


def _mixed_in(manifest: Mapping[str, Any], name: str) -> str | None:
    """Return what a name stands for that is no domain of a corpus; None: nothing in it."""
    languages = {
        language.lower(): domain
        for domain, splits in manifest["domains"].items()
        for language in splits.get("train", {}).get("languages", {})
    }
    if domain := languages.get(name.lower()):
        return f"{name} is a language of its {domain}"
    sources = [
        source.get(key) for source in manifest.get("sources", []) for key in ("name", "kind")
    ]
    return f"{name} is a source of it" if name in sources else None

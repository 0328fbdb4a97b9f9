"""The manifest of a finished corpus: reading it, and what it must have for training to read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loopcoder.config.mixture import CORPUS_EACH
from loopcoder.config.renamed import translate_manifest
from loopcoder.data.labels import LABELS
from loopcoder.data.mask import MASK, MASK_BLOCKS
from loopcoder.data.places import CHAT_TEMPLATE, TOKENIZER, rebuild, unreadable
from loopcoder.errors import InputError, Problem

FORMAT_VERSION = 2
"""Of the manifest and of what the pipeline makes of its input; raising it rebuilds every corpus."""
MANIFEST = "manifest.json"
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
_PACKED = {"packed": {"seq_length": int}}
"""Of a corpus that is packed for one length, with a mask."""
_KINDS = {int: "a whole number", str: "text", float: "a number", dict: "a mapping", list: "a list"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a corpus, in the words of this version.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError.of(
            f"there is no corpus folder {folder}",
            "training reads its tokens from there",
            "data.path=FOLDER of a finished corpus, or data=sample to build a small one",
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError as e:
        # Whoever gives the folder of their documents must not be told to delete it.
        raise InputError.of(
            f"{folder} has no {MANIFEST}",
            "a finished corpus has one, written last; a folder of documents has none",
            f"data=files path={folder} for documents, or a folder that `loopcoder data` printed",
        ) from e
    except OSError as e:
        raise unreadable(path, e) from e
    manifest = _parsed(content, path, rebuild(folder))
    refuse_altered(path, list(head_faults(manifest)), rebuild(folder))
    return manifest


def read_manifests(
    folders: Mapping[str, Path], missing: Callable[[str], Problem]
) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Return the manifests of corpora by their names, and what is wrong with the others.

    Args:
        missing: What to say of one by its name that is not there.
    """
    manifests: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name, folder in folders.items():
        if not (folder / MANIFEST).is_file():
            problems.append(missing(name))
            continue
        try:
            manifests[name] = read_manifest(folder)
        except InputError as error:
            problems += error.problems
    return manifests, problems


def parse_manifest(content: bytes, where: str, fix: str) -> dict[str, Any]:
    """Return a whole manifest from the content of its file, in the words of this version.

    Args:
        where: What the file is called.
        fix: What mends a damaged one.

    Raises:
        InputError: it is damaged or of another version.
    """
    manifest = _parsed(content, where, fix)
    refuse_altered(where, list(head_faults(manifest)) or manifest_faults(manifest, TOKENIZER), fix)
    return manifest


def _parsed(content: bytes, where: Path | str, fix: str) -> dict[str, Any]:
    try:
        manifest = json.loads(content.decode("utf-8"))
    except ValueError as e:
        raise InputError.of(f"cannot read {where}", str(e), fix) from e
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        why = f"this code reads version {FORMAT_VERSION}"
        raise InputError.of(f"{where} has format_version {version}", why, fix)
    return dict(translate_manifest(manifest))


def refuse_altered(where: Path | str, faults: Sequence[str], fix: str, most: int = 5) -> None:
    """Raise InputError where entries of the manifest are not what they were."""
    if faults:
        more = f" and {len(faults) - most} more" if len(faults) > most else ""
        why = f"a finished corpus was written with all of its entries: {'; '.join(faults[:most])}"
        raise InputError.of(f"{where} was altered", why + more, fix)


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
    suffixes = [".bin", ".idx", *([LABELS] if "labels" in manifest else [])]
    if "packed" in manifest:
        suffixes += [MASK, MASK_BLOCKS]
        yield from _packing_faults(manifest)
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


def _packing_faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with what a corpus says of its packing."""
    faults = list(_faults(manifest, _PACKED, ""))
    yield from faults
    if faults:
        return
    length = manifest["packed"]["seq_length"]
    if length < 2:
        yield f"packed.seq_length is {length}"
        return
    if CHAT_TEMPLATE not in manifest["files"]:
        yield f"files lacks {CHAT_TEMPLATE}, which its conversations were rendered with"
    for domain, splits in manifest["domains"].items():
        for shard in (shard for split in ("train", "val") for shard in splits[split]["shards"]):
            if shard["tokens"] % length != 1:
                yield (
                    f"{shard['prefix']} of {domain} has {shard['tokens']:,} tokens, not whole "
                    f"sequences of {length} and an end"
                )


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

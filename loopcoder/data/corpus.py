"""The finished corpus: what its manifest says, and whether its files agree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loopcoder.config.data import DataConfig
from loopcoder.config.renamed import translate_manifest
from loopcoder.data.indexed import BLOCKS, check_pair
from loopcoder.data.manifest import head_faults, manifest_faults
from loopcoder.errors import InputError, LoopcoderError, Problem
from loopcoder.storage.files import fault_of
from loopcoder.storage.lock import shared

FORMAT_VERSION = 2
"""Of the manifest and of what the pipeline makes of its input; raising it rebuilds every corpus."""

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.npy"
REPORT = "report.html"
UNIGRAM_ENTROPY = "unigram_entropy"
"""Entry of the manifest: that of every domain, in nats per token (see unigram.py)."""

_PERMIT = "chmod or chown it so that this user may read it"
Verify = Literal["hash", "blocks", "size"]
"""`hash` reads every byte of a corpus; `blocks` leaves out the training shards that have digests of
their blocks, to be compared when they are read; `size` opens no file but the manifest."""


@dataclass(frozen=True)
class Corpus:
    """A complete corpus folder."""

    dir: Path
    domains: tuple[str, ...]
    """Domains that it has, text before code."""
    tokenizer_path: Path
    tokenizer_hash: str
    """xxh3-128 of the bytes of tokenizer.json, in hex."""
    vocab_size: int
    """Highest token id + 1, unpadded."""
    eod_id: int
    """Token that ends every document."""
    fingerprint: str
    """Hash of everything that determines the content."""
    manifest: Mapping[str, Any] = field(repr=False, compare=False)

    def prefixes(self, domain: str, split: str) -> list[str]:
        """Return the paths of the shards, Megatron datasets, without .bin/.idx.

        Splits are `train` and `val`; the latter has one shard.
        """
        return [str(self.dir / shard["prefix"]) for shard in self._stats(domain, split)["shards"]]

    def shard_tokens(self, domain: str, split: str) -> list[int]:
        """Return the tokens of each shard, in the order of `prefixes`."""
        return [int(shard["tokens"]) for shard in self._stats(domain, split)["shards"]]

    def digests(self, domain: str, shard: int) -> Path | None:
        """Return the file with the digests of a training shard's blocks (see blocks.py); None: the
        corpus was built without them."""
        prefix = self._stats(domain, "train")["shards"][shard]["prefix"]
        name = prefix + BLOCKS
        return self.dir / name if name in self.manifest["files"] else None

    def tokens(self, domain: str, split: str) -> int:
        """Return the number of tokens, one EOD per document included."""
        return int(self._stats(domain, split)["tokens"])

    def documents(self, domain: str, split: str) -> int:
        """Return the number of documents."""
        return int(self._stats(domain, split)["documents"])

    def languages(self, domain: str, split: str) -> dict[str, dict[str, int]]:
        """Return documents and tokens of every language."""
        return dict(self._stats(domain, split)["languages"])

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the UTF-8 bytes that each id stands for, [vocab_size]; 0 for special tokens.

        Raises:
            InputError: the file is damaged, or holds objects, which could run something.
        """
        path = self.dir / TOKEN_BYTES
        try:
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.int64)
        except (OSError, ValueError, EOFError) as error:
            raise InputError.of(
                f"{path} cannot be read: {error}",
                "it holds whole numbers, and was cut off or altered",
                "the corpus as it was built; data.rebuild=true builds it again",
            ) from error

    def _stats(self, domain: str, split: str) -> Mapping[str, Any]:
        stats: Mapping[str, Any] = self.manifest["domains"][domain][split]
        return stats


def load_corpus(folder: str | Path, verify: Verify = "hash") -> Corpus:
    """Open a corpus folder after checking it.

    Args:
        folder: Folder that holds manifest.json.
        verify: `hash` compares sizes and hashes of all files, every index with its data, and the
            end of every document. `blocks` compares the sizes of training shards that have digests
            of their blocks, and all else as `hash` does. `size` compares the sizes of the files:
            some microseconds per file, whatever they hold, so that every rank can do it.

    Raises:
        InputError: with everything that is missing, cut off, altered or of another version.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    _refuse_altered(folder, manifest_faults(manifest, TOKENIZER))
    problems = list(_faults(folder, manifest, verify))
    if verify != "size" and not problems:
        problems += _pairs(folder, manifest, verify)
    problems += _sums(folder, manifest)
    if problems:
        raise InputError(problems)
    tokenizer = manifest["tokenizer"]
    return Corpus(
        dir=folder,
        domains=tuple(manifest["domains"]),
        tokenizer_path=folder / TOKENIZER,
        tokenizer_hash=tokenizer["xxh3_128"],
        vocab_size=tokenizer["vocab_size"],
        eod_id=tokenizer["eod_id"],
        fingerprint=manifest["fingerprint"],
        manifest=manifest,
    )


def opening(data: DataConfig) -> Verify:
    """Return what a run compares when it opens its corpus: all that its reader does not."""
    return "blocks" if data.reader == "packed" and data.verify == "hash" else data.verify


def _refuse_altered(folder: Path, faults: Sequence[str], most: int = 5) -> None:
    """Raise InputError where entries of the manifest are not what they were."""
    if faults:
        more = f" and {len(faults) - most} more" if len(faults) > most else ""
        why = f"a finished corpus was written with all of its entries: {'; '.join(faults[:most])}"
        raise InputError.of(f"{folder / MANIFEST} was altered", why + more, rebuild(folder))


def check_domains(folder: Path, manifest: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Raise InputError unless a corpus has every domain that a mixture names."""
    there = list(manifest["domains"])
    if missing := [domain for domain in wanted if domain not in there]:
        raise InputError.of(
            f"corpus {folder} has {' and '.join(there)}, not {' or '.join(missing)}",
            "data.mixture draws from every domain that it names",
            f"'data.mixture={{{','.join(f'{d}:1' for d in there)}}}'",
        )


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep `loopcoder data clean` from removing a corpus that is read in the block.

    Nothing is written: a corpus that this user may only read serves as well.

    Raises:
        InputError: it was removed meanwhile.
    """
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(shared(folder / MANIFEST))
        if not (folder / MANIFEST).is_file():
            raise InputError.of(
                f"the corpus {folder} was removed just before it was read",
                "somebody moved it, or ran loopcoder data clean",
                "the same command again, which builds it from its sources if it has any",
            )
        yield


def lost(corpus: Corpus) -> LoopcoderError | None:
    """Return the error of a corpus that is no longer what was opened; None: all files are there."""
    problem = next(_faults(corpus.dir, corpus.manifest, "size"), None)
    if problem is None:
        return None
    return LoopcoderError.of(
        f"the corpus {corpus.dir} was taken away while it was read: {problem.fact}",
        "it was removed, moved or changed, or its disk is gone; a run reads it until it ends",
        "the same command once it is back there, or with data=corpus path=FOLDER where it is now",
    )


def unreadable(path: Path | str, error: OSError) -> LoopcoderError:
    """Return the error of a file of a corpus that is there and cannot be read."""
    fact = f"{path} cannot be read: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return InputError.of(fact, "training reads all files of its corpus", _PERMIT)
    return LoopcoderError.of(
        fact,
        "its disk or its server fails; what was trained is saved",
        "the same command once it can be read, or with data=corpus path=FOLDER of a copy",
    )


def rebuild(folder: Path) -> str:
    """Return the fix of a corpus that is damaged."""
    return (
        f"delete {folder} and build it again (the same command does, with data=sample, files or hf)"
    )


def _faults(folder: Path, manifest: Mapping[str, Any], verify: Verify) -> Iterator[Problem]:
    """Compare every file with its entry in the manifest."""
    for name, wanted in manifest["files"].items():
        contents = verify == "hash" or (verify == "blocks" and not _in_blocks(name, manifest))
        path = folder / name
        fact = fault_of(path, wanted, contents=contents)
        if fact and path.exists() and not os.access(path, os.R_OK):
            yield Problem(fact, "training reads all files of its corpus", _PERMIT)
        elif fact:
            yield Problem(fact, "it was cut off or changed after it was built", rebuild(folder))


def _in_blocks(name: str, manifest: Mapping[str, Any]) -> bool:
    """Say whether a file is part of a training shard that is compared block by block when it is
    read."""
    prefix, dot, suffix = name.rpartition(".")
    is_shard = dot + suffix in (".bin", ".idx") and prefix.startswith("train/")
    return is_shard and prefix + BLOCKS in manifest["files"]


def _pairs(folder: Path, manifest: Mapping[str, Any], verify: Verify) -> Iterator[Problem]:
    """Compare every index that `verify` reads with its data, and both with the manifest."""
    tokenizer = manifest["tokenizer"]
    for splits in manifest["domains"].values():
        for shard in (shard for split in splits.values() for shard in split["shards"]):
            if verify == "blocks" and _in_blocks(shard["prefix"] + ".bin", manifest):
                continue
            try:
                found = check_pair(
                    folder / shard["prefix"],
                    vocab_size=tokenizer["vocab_size"],
                    eod_id=tokenizer["eod_id"],
                )
                if found != (shard["documents"], shard["tokens"]):
                    raise ValueError(f"{shard['prefix']} has {found}, the manifest {shard}")
            except (ValueError, OSError) as e:
                why = "index, data and manifest differ"
                yield Problem(f"{folder}: {e}", why, rebuild(folder))


def _sums(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Compare what the manifest says of a split with what it says of its shards."""
    for domain, splits in manifest["domains"].items():
        for split, stats in splits.items():
            for key in ("documents", "tokens"):
                total = sum(shard[key] for shard in stats["shards"])
                if total != stats[key]:
                    fact = f"{folder / MANIFEST}: {domain} {split} has {stats[key]:,} {key}"
                    yield Problem(fact, f"its shards have {total:,}", rebuild(folder))


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
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        # Whoever gives the folder of their documents must not be told to delete it.
        raise InputError.of(
            f"{folder} has no {MANIFEST}",
            "a finished corpus has one, written last; a folder of documents has none",
            f"data=files path={folder} for documents, or a folder that `loopcoder data` printed",
        ) from e
    except (OSError, ValueError) as e:
        raise InputError.of(f"cannot read {path}", str(e), rebuild(folder)) from e
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        why = f"this code reads version {FORMAT_VERSION}"
        raise InputError.of(f"{path} has format_version {version}", why, rebuild(folder))
    manifest = dict(translate_manifest(manifest))
    _refuse_altered(folder, list(head_faults(manifest)))
    return manifest

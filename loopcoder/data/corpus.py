"""The finished corpus: what its manifest says, and whether its files agree."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loopcoder.config.data import DataConfig, Reader
from loopcoder.config.schema import Config
from loopcoder.data.blocks import CheckedFile, OpenRange, digests_of
from loopcoder.data.indexed import BLOCKS, check_pair
from loopcoder.data.labels import LABELS, Label, LabelFile
from loopcoder.data.manifest import MANIFEST, manifest_faults, read_manifest, refuse_altered
from loopcoder.data.mask import MASK, MASK_BLOCKS, MaskFile, check_packing
from loopcoder.data.places import (
    CHAT_TEMPLATE,
    ELSEWHERE,
    OF_A_SHARD,
    ORIGIN,
    PERMIT,
    TOKEN_BYTES,
    TOKENIZER,
    check_store,
    origin_of,
    rebuild,
    small_files,
    training_shards,
)
from loopcoder.errors import InputError, LoopcoderError, Problem
from loopcoder.storage.files import fault_of, parsing
from loopcoder.storage.lock import shared
from loopcoder.storage.remote import Store

REPORT = "report.html"
UNIGRAM_ENTROPY = "unigram_entropy"
"""Entry of the manifest: that of every domain, in nats per token (see unigram.py)."""

Verify = Literal["hash", "small", "size"]
"""`hash` reads every byte of a corpus; `small` leaves out the training shards, which are compared
block by block when they are read, or by shard while training goes on (see verifier.py); `size`
opens no file but the manifest."""


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
    labels: tuple[Label, ...]
    """Of its documents, in the order of their numbers; without files of labels one for each domain,
    in the order of `domains`."""
    manifest: Mapping[str, Any] = field(repr=False, compare=False)
    url: str | None = None
    """Of the store that has its training shards, all else is in `dir`; None: they are there too."""

    @property
    def place(self) -> str:
        """Where it is, as `data.path` names it and a run records it."""
        return self.url or str(self.dir.resolve())

    @property
    def members(self) -> tuple[Corpus, ...]:
        """The corpora that it is joined of (joined.py); itself if it is one."""
        return (self,)

    def part(self, domain: str) -> tuple[Corpus, str]:
        """Return the corpus that a domain is read from, and what it is called there."""
        return self, domain

    def seed(self, domain: str) -> tuple[int, ...]:
        """Return what the order of a domain's sequences follows from, besides the run's seed."""
        return (self.domains.index(domain),)

    def first_label(self, domain: str) -> int:
        """Return the index in `labels` of the first label of the corpus that a domain is read
        from."""
        return 0

    def prefixes(self, domain: str, split: str) -> list[str]:
        """Return the paths of the shards, Megatron datasets, without .bin/.idx.

        Splits are `train` and `val`; the latter has one shard.
        """
        folder = self.part(domain)[0].dir
        return [str(folder / shard["prefix"]) for shard in self._stats(domain, split)["shards"]]

    def shard_tokens(self, domain: str, split: str) -> list[int]:
        """Return the tokens of each shard, in the order of `prefixes`."""
        return [int(shard["tokens"]) for shard in self._stats(domain, split)["shards"]]

    def digests(self, domain: str, shard: int) -> Path | None:
        """Return the file with the digests of a training shard's blocks (see blocks.py); None: the
        corpus was built without them."""
        of, name = self._entry(domain, "train", shard, BLOCKS)
        return of.dir / name if name in of.manifest["files"] else None

    @property
    def has_digests(self) -> bool:
        """Whether its training shards can be compared block by block when they are read."""
        return any(self.digests(domain, 0) is not None for domain in self.domains)

    @property
    def has_labels(self) -> bool:
        """Whether it keeps what each document is, beyond its domain."""
        return any(label.language or label.source for label in self.labels)

    def packed_for(self, domain: str) -> int | None:
        """Return the sequence length that a domain is packed for, at which alone it is read, with a
        mask (see mask.py); None: it is read at any, and trained everywhere."""
        packed = self.part(domain)[0].manifest.get("packed")
        return None if packed is None else int(packed["seq_length"])

    @property
    def is_packed(self) -> bool:
        """Whether some of it is packed for one sequence length, and has a mask."""
        return any("packed" in member.manifest for member in self.members)

    @property
    def chat_template(self) -> str | None:
        """The template that its conversations were rendered with, in Jinja; None: it has none.

        Raises:
            InputError: the file cannot be read.
        """
        for member in self.members:
            if CHAT_TEMPLATE in member.manifest["files"]:
                why = "checkpoints get a copy of it"
                with parsing(member.dir / CHAT_TEMPLATE, why, rebuild(member.dir)):
                    return (member.dir / CHAT_TEMPLATE).read_text(encoding="utf-8")
        return None

    def mask_file(
        self,
        domain: str,
        split: str,
        shard: int,
        *,
        verify: bool = False,
        opens: OpenRange = CheckedFile,
    ) -> MaskFile | None:
        """Open the mask of a shard; None: all of its tokens are trained.

        Args:
            verify: Compare each block with its digest before it is used.
            opens: Opens the file.

        Raises:
            InputError: the digests are damaged.
            OSError: the file cannot be opened.
        """
        of, name = self._entry(domain, split, shard, MASK)
        if "packed" not in of.manifest:
            return None
        path, fix = of.dir / name, rebuild(of.dir)
        size = self.shard_tokens(domain, split)[shard]
        beside = path.with_name(path.name.removesuffix(MASK) + MASK_BLOCKS)
        digests = digests_of(beside, size, fix) if verify else None
        return MaskFile(opens(path, size, digests, fix), path, fix)

    def label_tokens(self, split: str) -> NDArray[np.int64]:
        """Return the tokens of each label. [labels]"""
        tokens = np.zeros(len(self.labels), dtype=np.int64)
        for number, domain in enumerate(self.domains):
            stats = self._stats(domain, split)
            for row in stats.get("labels", [{"label": number, "tokens": stats["tokens"]}]):
                tokens[row["label"]] += row["tokens"]
        return tokens

    def label_file(
        self,
        domain: str,
        split: str,
        shard: int,
        *,
        verify: bool = False,
        opens: OpenRange = CheckedFile,
    ) -> LabelFile | None:
        """Open the labels of a shard's documents, which count from `first_label` on; None: the
        corpus was built without them, and all have the label of their domain.

        Args:
            verify: Compare the file with its digest before it is used.
            opens: Opens the file.

        Raises:
            OSError: the file cannot be opened.
        """
        of, name = self._entry(domain, split, shard, LABELS)
        if "labels" not in of.manifest:
            return None
        entry = self._stats(domain, split)["shards"][shard]
        digest = of.manifest["files"][name]["xxh3_128"] if verify else None
        size = entry["documents"], entry["tokens"]
        return LabelFile(of.dir / name, *size, len(of.labels), digest, rebuild(of.dir), opens)

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

    def _entry(self, domain: str, split: str, shard: int, suffix: str) -> tuple[Corpus, str]:
        """Return the corpus that has a file of a shard, and the file's name there."""
        prefix = self._stats(domain, split)["shards"][shard]["prefix"]
        return self.part(domain)[0], prefix + suffix

    def _stats(self, domain: str, split: str) -> Mapping[str, Any]:
        stats: Mapping[str, Any] = self.manifest["domains"][domain][split]
        return stats


def load_corpus(folder: str | Path, verify: Verify = "hash") -> Corpus:
    """Open a corpus folder after checking it.

    Args:
        folder: Folder that holds manifest.json.
        verify: `hash` compares sizes and hashes of all files, every index with its data, and the
            end of every document. `small` compares the sizes of training shards, and all else as
            `hash` does. `size` compares the sizes of the files: some microseconds per file,
            whatever they hold, so that every rank can do it. Of training shards in a store the
            sizes are listed, unless it is `size`.

    Raises:
        InputError: with everything that is missing, cut off, altered or of another version.
        LoopcoderError: the store cannot be read.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    faults = manifest_faults(manifest, TOKENIZER)
    refuse_altered(folder / MANIFEST, faults, rebuild(folder))
    problems = list(_faults(folder, manifest, verify))
    if verify != "size" and not problems:
        problems += _pairs(folder, manifest, verify)
    problems += _sums(folder, manifest)
    if problems:
        raise InputError(problems)
    url = origin_of(folder)
    if url is not None and verify != "size":
        check_store(Store(url), manifest)
    tokenizer = manifest["tokenizer"]
    return Corpus(
        dir=folder,
        domains=tuple(manifest["domains"]),
        tokenizer_path=folder / TOKENIZER,
        tokenizer_hash=tokenizer["xxh3_128"],
        vocab_size=tokenizer["vocab_size"],
        eod_id=tokenizer["eod_id"],
        fingerprint=manifest["fingerprint"],
        labels=_labels(manifest),
        manifest=manifest,
        url=url,
    )


def _labels(manifest: Mapping[str, Any]) -> tuple[Label, ...]:
    by_domain = [(domain, None, None) for domain in manifest["domains"]]
    return tuple(Label(*label) for label in manifest.get("labels", by_domain))


def opening(data: DataConfig) -> Verify:
    """Return what a run compares when it opens its corpus: all that it does not later on."""
    if data.verify == "size":
        return "size"
    return "hash" if data.verify == "hash" and data.reader == "megatron" else "small"


def with_reader(config: Config, corpus: Corpus) -> Config:
    """Return a config with the reader that suits a corpus in place of `auto`."""
    if config.data.reader != "auto":
        return config
    in_store = any(member.url for member in corpus.members)
    by_blocks = corpus.has_digests or corpus.is_packed or in_store
    lengths = {stage.seq_length for stage in config.stages}
    reader: Reader = "packed" if len(lengths) > 1 else "shuffled"
    return replace(config, data=replace(config.data, reader=reader if by_blocks else "megatron"))


def at_once(data: DataConfig) -> Verify:
    """Return what is compared of a corpus that is opened and not trained on."""
    return "size" if data.verify == "size" else "hash"


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
    faults = ((m.dir, p) for m in corpus.members for p in _faults(m.dir, m.manifest, "size"))
    folder, problem = next(faults, (corpus.dir, None))
    if problem is None:
        return None
    return LoopcoderError.of(
        f"the corpus {folder} was taken away while it was read: {problem.fact}",
        "it was removed, moved or changed, or its disk is gone; a run reads it until it ends",
        f"the same command once it is back there, or with {ELSEWHERE} where it is now",
    )


def _faults(folder: Path, manifest: Mapping[str, Any], verify: Verify) -> Iterator[Problem]:
    """Compare every file with its entry in the manifest."""
    in_store = (folder / ORIGIN).is_file()
    shards = {s["prefix"] + e for s in training_shards(manifest) for e in OF_A_SHARD}
    for name in small_files(manifest) if in_store else manifest["files"]:
        wanted = manifest["files"][name]
        contents = verify == "hash" or (verify == "small" and name not in shards)
        path = folder / name
        fact = fault_of(path, wanted, contents=contents)
        if fact and path.exists() and not os.access(path, os.R_OK):
            yield Problem(fact, "training reads all files of its corpus", PERMIT)
        elif fact:
            why = "it was removed, cut off or changed after it was built"
            yield Problem(fact, why, rebuild(folder))


def _pairs(folder: Path, manifest: Mapping[str, Any], verify: Verify) -> Iterator[Problem]:
    """Compare every index that `verify` reads with its data, and both with the manifest."""
    tokenizer, in_store = manifest["tokenizer"], (folder / ORIGIN).is_file()
    for splits in manifest["domains"].values():
        small = splits if verify == "hash" and not in_store else {"val": splits["val"]}
        for shard in (shard for split in small.values() for shard in split["shards"]):
            try:
                found = check_pair(
                    folder / shard["prefix"],
                    vocab_size=tokenizer["vocab_size"],
                    eod_id=tokenizer["eod_id"],
                )
                if found != (shard["documents"], shard["tokens"]):
                    raise ValueError(f"{shard['prefix']} has {found}, the manifest {shard}")
                if "packed" in manifest:
                    check_packing(
                        folder / shard["prefix"], *found, manifest["packed"]["seq_length"]
                    )
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

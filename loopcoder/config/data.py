"""The section `data`: what a run trains on, in which order; how it is built is `data.build`."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic.dataclasses import dataclass

from loopcoder.config.build import BuildConfig
from loopcoder.config.types import (
    STRICT,
    Changes,
    FolderName,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

Reader = Literal["auto", "megatron", "packed", "shuffled"]

_KINDS = {
    "sample": {"sample"}, "files": {"files"}, "hf": {"hf"}, "packages": {"debian", "npm"},
    "chat": {"chat"},
}  # fmt: skip
"""Kinds of the sources that the presets of `data` have."""


_NEW = Changes("corpus", since="2026-11-29")


@dataclass(frozen=True, config=STRICT)
class CorpusConfig:
    """A finished corpus that is read together with others; all have the same tokenizer."""

    path: str
    """Its folder, or its URL in an object store."""
    weight: PositiveFloat = 1.0
    """Its share of each of its domains, in proportion to the other corpora that have it."""
    name: str | None = None
    """What it is called, in NAME/DOMAIN of losses and mixtures; null: as its folder is."""
    domains: list[str] | None = None
    """Domains that are read of it; null: all that its manifest has."""

    @property
    def called(self) -> str:
        """Its name, or that of its folder."""
        return self.name or Path(self.path).name


@dataclass(frozen=True, config=STRICT)
class StageConfig:
    """One stretch of training on one mixture; null fields take the value of `data` or `model`."""

    until: PositiveInt | None = None
    """The stage ends at the first step at which this many tokens were trained in all; null: at the
    end of the run."""
    mixture: Annotated[dict[str, PositiveFloat] | None, Changes("corpus")] = None
    """Weight of each domain, by tokens."""
    corpora: Annotated[list[CorpusConfig] | None, _NEW] = None
    """Corpora that are read in this stage."""
    seq_length: PositiveInt | None = None
    """Tokens per sequence."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary position embedding in this stage."""


@dataclass(frozen=True, config=STRICT)
class CacheConfig:
    """What is kept on this machine of a corpus whose `data.path` is a URL."""

    dir: str | None = None
    """Folder on a local disk, which all processes of a node and all runs share; null: `remote` in
    data.build.cache_dir."""
    bytes: PositiveInt = 64_000_000_000
    """Of the blocks of training shards that it keeps, those that were used last; less where its
    disk is full."""
    ahead: NonNegativeInt = 4
    """Blocks of 64 MB of each domain that are fetched before they are needed."""


@dataclass(frozen=True, config=STRICT)
class SkipConfig:
    """Samples of a data stage that are left out."""

    step: PositiveInt
    """The step before which they are, by its number in metrics.jsonl."""
    steps: PositiveInt
    """As many samples as this many steps would take."""


@dataclasses.dataclass(frozen=True)
class ResolvedStage:
    """A stage with the values that it takes from `data` and `model` filled in."""

    mixture: dict[str, float]
    seq_length: int
    rope_theta: float
    until: int | None = None


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which documents are trained on, in which proportion."""

    name: FolderName
    """Name of the preset; part of the corpus's name."""
    seq_length: Annotated[PositiveInt, Changes("corpus")]
    """Tokens per sequence."""
    mixture: Annotated[dict[str, PositiveFloat], Changes("corpus")]
    """Weight of each domain, by tokens; every global batch is composed in these proportions."""
    path: Annotated[str | list[str] | None, Changes("corpus")] = None
    """Shorthand for the path of the sources (data=files, hf or chat), or a finished corpus folder
    (data=corpus), which may also be a URL of fsspec, such as s3://BUCKET/FOLDER."""
    corpora: Annotated[list[CorpusConfig], _NEW] = field(default_factory=list)
    """Several finished corpora in place of `path` (data=corpus), each with its weight: documents of
    one language or source have shares of their own if they are a corpus of their own."""
    stages: list[StageConfig] = field(default_factory=list)
    """Data stages in order; empty means one stage with the values above."""
    skip: Annotated[list[SkipConfig], Changes("numbers", since="2026-11-29")] = field(
        default_factory=list
    )
    """Samples to leave out: those that the next `steps` steps would take before step `step`. They
    do not count as trained, and a stage lasts until its tokens are."""
    isolate_documents: bool = True
    """Keep attention and the loop shift inside a document; position ids restart at each."""
    mask_document_start: bool = True
    """Leave the first token of a document out of the loss: with isolated documents nothing predicts
    it."""
    prefetch_steps: Annotated[NonNegativeInt, Changes("nothing")] = 4
    """Global batches that a thread prepares ahead; 0: there is no thread, and a step waits for its
    own."""
    verify: Annotated[Literal["hash", "background", "size"], Changes("nothing")] = "hash"
    """What of a finished corpus is compared with its manifest. `hash`: every byte before it is
    used, by data.reader=megatron before training on rank 0, by others each block when it is read;
    shards without digests of their blocks in the background. `background`: training shards while
    training goes on, by the first process of every node; what was used before is said, and a
    damaged shard stops the run before its next checkpoint. `size`: only the sizes of files."""
    cache: Annotated[CacheConfig, Changes("nothing")] = field(default_factory=CacheConfig)
    reader: Annotated[Reader, Changes("numbers", since="2026-11-29")] = "auto"
    """What gives the sequences, and their order: `megatron` is megatron-core's GPTDataset, which
    copies the index of a shard into memory; `shuffled` finds a sequence by arithmetic, whatever the
    size of the corpus, and with data.verify=hash compares each block of 64 MB with its digest
    before it is used; within a block, or a shard that is smaller, the order is random. `packed` is
    the same, but a small shard is read in 16 parts, one after the other, so that a stage of another
    length leaves out the rest of one, not of the shard. `auto`: a run that goes on keeps its own;
    else for a corpus with such digests, as those that are built here, shuffled, or packed where
    data.stages have several lengths; megatron for others."""
    rebuild: Annotated[bool, Changes("nothing")] = False
    """Read the sources again when a run goes on; else it keeps the corpus that it was trained on,
    whatever became of its sources."""
    build: Annotated[BuildConfig, Changes("corpus")] = field(default_factory=BuildConfig)

    @property
    def corpus_name(self) -> str:
        """What a corpus is called: the name of the preset, or the kinds of the sources where they
        are others than the preset's."""
        kinds = {source.kind for source in self.build.sources}
        if kinds and kinds.isdisjoint(_KINDS.get(self.name, kinds)):
            return "-".join(sorted(kinds))
        return self.name

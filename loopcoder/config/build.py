"""How documents become a corpus: the sections of `data` besides its sources and filters."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from loopcoder.config.types import STRICT, Fraction, NonNegativeInt, PositiveInt


@dataclass(frozen=True, config=STRICT)
class NearDedupConfig:
    """Which documents count as near copies; exact copies are always dropped."""

    enabled: bool | Literal["auto"] = True
    """Look for near copies; needs rensa (auto: where it is installed)."""
    bands: PositiveInt = 14
    """Bands of a signature; 16 bytes a document on disk each."""
    rows: PositiveInt = 8
    """Hashes that make up a band. Pairs of similarity J share a band with the probability
    1 - (1 - J^rows)^bands."""
    verify: Fraction | None = 0.75
    """Share of the signature that a pair found by a band must agree in; null takes every pair."""
    text_shingle: PositiveInt = 5
    """Consecutive words of prose that are compared as one."""
    code_shingle: PositiveInt = 5
    """Consecutive tokens of code (words and single signs) that are compared as one."""


@dataclass(frozen=True, config=STRICT)
class DecontaminateConfig:
    """Which benchmarks may not be in the corpus."""

    benchmarks: list[str] = field(default_factory=lambda: ["humaneval", "bfcl_v4"])
    """Built in: humaneval, bfcl_v4. Else paths of .jsonl or .txt files. Empty: none."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of a problem's n-grams from which on a document that has them is dropped."""
    ngram: PositiveInt | None = None
    """Words of an n-gram, for files; null: 13, or fewer where texts are short."""


@dataclass(frozen=True, config=STRICT)
class FimConfig:
    """Fill in the middle: which code documents are rearranged."""

    rate: Fraction = 0.5
    """Share of the code documents that are rearranged; 0 turns it off."""
    spm_share: Fraction = 0.5
    """Share of these that show the suffix first (SPM); the others are PSM."""
    min_chars: PositiveInt = 10
    """Documents with fewer characters are left alone."""
    seed: NonNegativeInt = 0
    """Another one cuts every document elsewhere."""


@dataclass(frozen=True, config=STRICT)
class ExecutorConfig:
    """Where the stages of the pipeline run. The corpus does not depend on it."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """`local`: processes of this machine. `slurm`: a job array a stage. `ray`: a Ray cluster."""
    workers: NonNegativeInt = 0
    """Tasks at the same time. 0: one a core (local; one in all where there is little to do), or as
    many as there is room for."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of datatrove's executor: partition, time, mem_per_cpu_gb, ..."""

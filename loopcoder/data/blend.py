"""Sequences of a corpus by sample index: those of its domains, blended by a mixture."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from loopcoder.config.data import DataConfig, ResolvedStage
from loopcoder.config.mixture import lowest_terms, without
from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus, with_reader
from loopcoder.data.megatron import MegatronReader
from loopcoder.data.order import STRETCHES
from loopcoder.data.packed import PackedReader
from loopcoder.data.reader import MakeReader
from loopcoder.data.sampler import Given, Mixture, Position, given
from loopcoder.errors import InputError, counted

_MUCH = 0.1
"""Share of a domain that is not left out in silence."""


class Rows(NamedTuple):
    """Some sequences."""

    ids: torch.Tensor
    """Token ids. [B, S+1], int64"""
    domain_ids: torch.Tensor
    """Index of each row's domain in the corpus. [B], int64"""
    label_ids: torch.Tensor
    """Index in `Corpus.labels` of the document of each label. [B, S], int64"""
    trained: torch.Tensor | None
    """Which labels are trained, [B, S], bool; None: all of them."""


def reader_of(data: DataConfig) -> MakeReader:
    """Return what reads the sequences of a run; its reader is not `auto` (see `with_reader`)."""
    if data.reader == "megatron":
        return MegatronReader
    stretches = 1 if data.reader == "shuffled" else STRETCHES
    verifies = data.verify == "hash"
    return partial(PackedReader, verify=verifies, cache=data.cache, stretches=stretches)


class Blend:
    """The training sequences of one data stage: sample i is the same whatever was read before."""

    def __init__(
        self,
        corpus: Corpus,
        stage: ResolvedStage,
        stage_idx: int,
        seed: int,
        reader: MakeReader = MegatronReader,
        before: dict[str, Given] | None = None,
    ):
        """
        Args:
            before: What each domain gave before the stage; it goes on there. None: the stage has an
                order of its own.
        """
        self.corpus, self.seq_length = corpus, stage.seq_length
        self.mixture = Mixture(stage.mixture)
        self.check(corpus, stage)
        order = stage_idx if before is None else 0
        self._readers = {
            d: reader(
                *corpus.part(d),
                stage.seq_length,
                (seed, order, *corpus.seed(d)),
                (before or {}).get(d, ()),
            )
            for d in self.mixture.domains
        }
        self.left_out = {d: r.left_out for d, r in self._readers.items()}
        """Of each domain: sequences that changes of the length left out, with the length before."""
        self._sizes = {d: int(r.sequences.sum()) for d, r in self._readers.items()}

    @staticmethod
    def check(corpus: Corpus, stage: ResolvedStage) -> None:
        """Raise InputError if the corpus cannot give what a stage asks for."""
        for domain in stage.mixture:
            if domain not in corpus.domains:
                raise InputError.of(
                    f"data.mixture has '{domain}', the corpus {', '.join(corpus.domains)}",
                    "a batch cannot be composed of documents that do not exist",
                    "add a source of that domain"
                    + (f", or {rest}" if (rest := without(stage.mixture, domain)) else ""),
                )
            shards = corpus.shard_tokens(domain, "train")
            tokens = max(shards)
            if tokens < stage.seq_length + 1:
                raise InputError.of(
                    f"the domain '{domain}' has {counted(tokens, 'training token')}"
                    + (" in its largest shard" if len(shards) > 1 else ""),
                    f"less than one sequence of {counted(stage.seq_length, 'token')} "
                    "and its last label",
                    f"data.seq_length={max(1, (tokens - 1) // 2)} or less, or more data",
                )

    def epochs(self, samples: int) -> dict[str, float]:
        """Return how often each domain was gone through after the first `samples` sequences of the
        stage."""
        counts = self.mixture.counts(samples)
        return {d: self._readers[d].epochs(counts[d]) for d in self.mixture.domains}

    def steps_of_epoch(self, batch: int) -> dict[str, float]:
        """Return in how many steps of so many sequences each domain is gone through."""
        in_all = sum(self.mixture.weights.values())
        shares = {domain: weight / in_all for domain, weight in self.mixture.weights.items()}
        return {domain: size / (shares[domain] * batch) for domain, size in self._sizes.items()}

    def unused(self) -> dict[str, float]:
        """Return the share of the tokens of each domain that is in none of its sequences."""
        return {
            d: 1 - size * self.seq_length / self.corpus.tokens(d, "train")
            for d, size in self._sizes.items()
        }

    def locate(self, sample: int) -> tuple[str, int, int]:
        """Return the domain of a sample of the stage, its epoch, and its index in the epoch."""
        domain, index = self.mixture.locate(sample)
        return domain, *divmod(self._readers[domain].start + index, self._sizes[domain])

    def rows(self, samples: np.ndarray) -> Rows:
        """Return some samples."""
        ids, labels, domains, trained = [], [], [], []
        for sample in samples:
            domain, epoch, index = self.locate(int(sample))
            row = self._readers[domain].row(epoch, index)
            ids.append(row.ids)
            labels.append(row.labels + self.corpus.first_label(domain))
            domains.append(self.corpus.domains.index(domain))
            trained.append(row.trained)
        return Rows(
            torch.stack(ids), torch.tensor(domains), torch.stack(labels), self._stacked(trained)
        )

    def _stacked(self, trained: list[torch.Tensor | None]) -> torch.Tensor | None:
        """Return the masks of some sequences as one; those without are trained everywhere."""
        if all(mask is None for mask in trained):
            return None
        everywhere = torch.ones(self.seq_length, dtype=torch.bool)
        return torch.stack([everywhere if mask is None else mask for mask in trained])


def blend_at(config: Config, corpus: Corpus, position: Position) -> Blend:
    """Return the sequences of the stage that a position is in."""
    stage = config.stages[position.stage]
    reader = reader_of(with_reader(config, corpus).data)
    return Blend(corpus, stage, position.stage, config.seed, reader, position.before)


def epochs_at(config: Config, corpus: Corpus, position: Position) -> dict[str, float]:
    """Return how often each domain that the run has read was gone through at a position; of a run
    whose stages have orders of their own, in the position's stage alone."""
    reader, found = reader_of(with_reader(config, corpus).data), {}
    order = position.stage if position.before is None else 0
    for domain, runs in given(config.stages[position.stage], position).items():
        *before, (length, sequences) = runs
        own, seeds = corpus.part(domain), (config.seed, order, *corpus.seed(domain))
        found[domain] = reader(*own, length, seeds, tuple(before)).epochs(sequences)
    return found


def check_stages(config: Config, corpus: Corpus, position: Position) -> list[str]:
    """Compare a corpus with what the stages from a position on ask for.

    Returns notes for the user: of lengths that suit the stretches of a domain badly.

    Raises:
        InputError: it cannot give it.
    """
    notes = []
    for index, stage in enumerate(config.stages[position.stage :], position.stage):
        Blend.check(corpus, stage)
        here = replace(position, stage=index, sample=sum(lowest_terms(stage.mixture).values()))
        blend, length = blend_at(config, corpus, here), counted(stage.seq_length, "token")
        notes += [
            f"warning: data stage {index + 1} leaves {share:.0%} of {domain} out: {length} do not "
            "fit well into its stretches, which another length has cut"
            for domain, share in blend.unused().items()
            if share > _MUCH and blend.left_out[domain]
        ]
        if position.before is not None:  # as if it gave each of its domains something
            position = replace(position, before=given(stage, here))
    return notes

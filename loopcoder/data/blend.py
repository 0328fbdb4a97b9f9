"""Sequences of a corpus by sample index: those of its domains, blended by a mixture."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from loopcoder.config.data import DataConfig, ResolvedStage
from loopcoder.config.mixture import without
from loopcoder.data.corpus import Corpus
from loopcoder.data.megatron import MegatronReader
from loopcoder.data.packed import PackedReader
from loopcoder.data.reader import MakeReader
from loopcoder.data.sampler import Mixture
from loopcoder.errors import InputError, counted


def reader_of(data: DataConfig) -> MakeReader:
    """Return what reads the sequences of a run."""
    if data.reader == "packed":
        return partial(PackedReader, verify=data.verify == "hash", cache=data.cache)
    return MegatronReader


class Blend:
    """The training sequences of one data stage: sample i is the same whatever was read before."""

    def __init__(
        self,
        corpus: Corpus,
        stage: ResolvedStage,
        stage_idx: int,
        seed: int,
        reader: MakeReader = MegatronReader,
    ):
        self.corpus, self.seq_length = corpus, stage.seq_length
        self.mixture = Mixture(stage.mixture)
        self.check(corpus, stage)
        self._readers = {
            d: reader(corpus, d, stage.seq_length, (seed, stage_idx, corpus.domains.index(d)))
            for d in self.mixture.domains
        }
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
        """Return how often each domain is seen in the first `samples` sequences of the stage."""
        cycles = samples / len(self.mixture.pattern)
        counts = np.bincount(self.mixture.pattern, minlength=len(self.mixture.domains))
        return {
            d: cycles * count / self._sizes[d]
            for d, count in zip(self.mixture.domains, counts, strict=True)
        }

    def rows(self, samples: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids [B, S+1] and domain indices [B] of some samples."""
        rows, domains = [], []
        for sample in samples:
            domain, index = self.mixture.locate(int(sample))
            rows.append(self._readers[domain].row(*divmod(index, self._sizes[domain])))
            domains.append(self.corpus.domains.index(domain))
        return torch.stack(rows), torch.tensor(domains)

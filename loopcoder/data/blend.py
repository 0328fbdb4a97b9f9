"""Sequences of a corpus by sample index: megatron-core's GPTDataset per domain and epoch, blended
by a mixture."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from data_pipeline.manifest import Corpus
from loopcoder.config.schema import StageConfig
from loopcoder.data.sampler import Mixture
from loopcoder.errors import InputError


class Blend:
    """The training sequences of one data stage.

    Every epoch of a domain is a GPTDataset of exactly one epoch with its own shuffle. One
    GPTDataset of n epochs, as megatron builds it, shuffles differently for every n, so that a
    longer run would see other data from its first step on; here sample i is the same whatever
    max_steps is.
    """

    def __init__(self, corpus: Corpus, stage: StageConfig, stage_idx: int, seed: int):
        assert stage.mixture is not None and stage.seq_length is not None
        self.corpus, self.seq_length = corpus, stage.seq_length
        self._seeds = (seed, stage_idx)
        self.mixture = Mixture(stage.mixture)
        self.check(corpus, stage)
        # A batch can straddle the border of an epoch, or of several where a domain is small.
        self._epoch = lru_cache(maxsize=4 * len(self.mixture.domains))(self._build_epoch)
        self._sizes = {d: len(self._epoch(d, 0)) for d in self.mixture.domains}

    @staticmethod
    def check(corpus: Corpus, stage: StageConfig) -> None:
        """Raise InputError if the corpus cannot give what a stage asks for."""
        assert stage.mixture is not None and stage.seq_length is not None
        for domain in stage.mixture:
            if domain not in corpus.domains:
                raise InputError.of(
                    f"data.mixture has '{domain}', the corpus {', '.join(corpus.domains)}",
                    "a batch cannot be composed of documents that do not exist",
                    f"'~data.mixture.{domain}', or add a source of that domain",
                )
            tokens = corpus.tokens(domain, "train")
            if tokens < stage.seq_length + 1:
                raise InputError.of(
                    f"the domain '{domain}' has {tokens} training tokens",
                    f"less than one sequence of {stage.seq_length} tokens and its last label",
                    f"data.seq_length={max(1, (tokens - 1) // 2)} or less, or more data",
                )

    def _build_epoch(self, domain: str, epoch: int) -> Any:
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.utils import Split

        logging.getLogger("megatron.core.datasets.gpt_dataset").setLevel(logging.ERROR)
        prefix = self.corpus.prefix(domain, "train")
        seed = np.random.SeedSequence([*self._seeds, self.corpus.domains.index(domain), epoch])
        config = GPTDatasetConfig(
            random_seed=int(seed.generate_state(1)[0]),
            sequence_length=self.seq_length,
            blend=([prefix], [1.0]),
            split="1,0,0",
            # An empty path builds the index in memory; every rank does so for itself, without a
            # barrier.
            path_to_cache="",
            tokenizer=SimpleNamespace(
                eod=self.corpus.eod_id, vocab_size=None, unique_identifiers={}
            ),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        documents = GPTDataset.build_low_level_dataset(prefix, config)
        indices = np.arange(GPTDataset.numel_low_level_dataset(documents), dtype=np.int32)
        return GPTDataset(documents, prefix, indices, None, Split.train, config)

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
            epoch, index = divmod(index, self._sizes[domain])
            item = self._epoch(domain, epoch)[index]
            rows.append(torch.cat([item["tokens"], item["labels"][-1:]]))
            domains.append(self.corpus.domains.index(domain))
        return torch.stack(rows), torch.tensor(domains)

"""Sequences of a corpus by sample index: megatron-core's GPTDataset per shard and epoch, blended
by a mixture."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from loopcoder.config.data import ResolvedStage
from loopcoder.config.mixture import without
from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import check_there
from loopcoder.data.sampler import Mixture
from loopcoder.errors import InputError, counted


class Blend:
    """The training sequences of one data stage.

    An epoch of a domain is all its shards, one after the other in an order of its own; each is a
    GPTDataset of exactly one epoch with its own shuffle. One GPTDataset of n epochs, as megatron
    builds it, shuffles differently for every n, so that a longer run would see other data from its
    first step on; here sample i is the same whatever max_steps is. Nor is GPTDataset ever asked for
    a number of sequences: it would begin a second epoch to give exactly as many as there are.
    """

    def __init__(self, corpus: Corpus, stage: ResolvedStage, stage_idx: int, seed: int):
        self.corpus, self.seq_length = corpus, stage.seq_length
        self._seeds = (seed, stage_idx)
        self.mixture = Mixture(stage.mixture)
        self.check(corpus, stage)
        # A batch can straddle the border of a shard, or of several where they are small.
        self._shard = lru_cache(maxsize=4 * len(self.mixture.domains))(self._build_shard)
        self._order = lru_cache(maxsize=4 * len(self.mixture.domains))(self._shuffle_shards)
        # Each shard ends with the label of its last sequence.
        self._sequences = {
            d: np.array([(n - 1) // self.seq_length for n in corpus.shard_tokens(d, "train")])
            for d in self.mixture.domains
        }
        self._sizes = {d: int(counts.sum()) for d, counts in self._sequences.items()}

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

    def _seed(self, domain: str, epoch: int, *more: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(
            [*self._seeds, self.corpus.domains.index(domain), epoch, *more]
        )

    def _shuffle_shards(self, domain: str, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of an epoch in their order, and how many sequences end with each."""
        counts = self._sequences[domain]
        order = np.random.default_rng(self._seed(domain, epoch)).permutation(len(counts))
        return order, np.cumsum(counts[order])

    def _build_shard(self, domain: str, epoch: int, shard: int) -> Any:
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.utils import Split

        logging.getLogger("megatron.core.datasets.gpt_dataset").setLevel(logging.ERROR)
        prefix = self.corpus.prefixes(domain, "train")[shard]
        check_there(prefix)
        seed = self._seed(domain, epoch, shard)
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
        dataset = GPTDataset(documents, prefix, indices, None, Split.train, config)
        if len(dataset) != self._sequences[domain][shard]:
            raise RuntimeError(
                f"{prefix}: megatron-core finds {len(dataset)} sequences of {self.seq_length} "
                f"tokens, its tokens make {self._sequences[domain][shard]}"
            )
        return dataset

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
            order, ends = self._order(domain, epoch)
            place = int(np.searchsorted(ends, index, side="right"))
            shard = int(order[place])
            first = int(ends[place]) - int(self._sequences[domain][shard])
            item = self._shard(domain, epoch, shard)[index - first]
            rows.append(torch.cat([item["tokens"], item["labels"][-1:]]))
            domains.append(self.corpus.domains.index(domain))
        return torch.stack(rows), torch.tensor(domains)

"""Sequences of a corpus by megatron-core's GPTDataset: one for each shard and epoch."""

from __future__ import annotations

import logging
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loopcoder.data.corpus import Corpus
from loopcoder.data.indexed import check_there
from loopcoder.data.labels import tokens_by_document
from loopcoder.data.places import ELSEWHERE
from loopcoder.data.reader import Row, part_of, readable, sequences_by_shard
from loopcoder.data.sampler import Given
from loopcoder.errors import InputError

_PER_DOMAIN = 4
"""Datasets kept open: a batch can straddle the border of a shard, or of several small ones."""


class MegatronReader:
    """Reads any corpus, in an order that its index of documents gives.

    An epoch of a domain is all its shards, one after the other in an order of its own; each is a
    GPTDataset of exactly one epoch with its own shuffle. One GPTDataset of n epochs, as megatron
    builds it, shuffles differently for every n, so that a longer run would see other data from its
    first step on; here sequence i is the same whatever max_steps is. Nor is GPTDataset ever asked
    for a number of sequences: it would begin a second epoch to give exactly as many as there are.

    Memory and time: the index of every shard that is open, some 40 bytes for each document, is
    copied when it is entered.
    """

    def __init__(
        self,
        corpus: Corpus,
        domain: str,
        seq_length: int,
        seeds: tuple[int, ...],
        before: Given = (),
    ):
        """
        Args:
            seeds: What the order follows from: (seed, number of the order, domain).
            before: What the domain gave. An index is made for one length: at another one the
                domain begins an order of its own, with the next number.

        Raises:
            InputError: the shards are in a store, or have a mask.
        """
        if corpus.url is not None:
            raise InputError.of(
                f"the training shards are in a store, {corpus.url}, and data.reader=megatron",
                "megatron-core's GPTDataset reads files of this machine",
                f"{ELSEWHERE} of a local copy; a new run may have data.reader=shuffled",
            )
        if corpus.is_packed:
            raise InputError.of(
                f"{corpus.dir} is packed, with a mask of what is trained, and data.reader=megatron",
                "megatron-core's GPTDataset does not read it, and cuts conversations at random",
                "data.reader=shuffled",
            )
        self._corpus, self._domain, self._seq_length = corpus, domain, seq_length
        goes_on = bool(before) and before[-1][0] == seq_length
        self.start = before[-1][1] if goes_on else 0
        self.left_out: Given = ()
        self._earlier = before[:-1] if goes_on else before
        self._seeds = (seeds[0], seeds[1] + len(self._earlier), *seeds[2:])
        self.sequences = sequences_by_shard(corpus, domain, seq_length)
        self._shard = lru_cache(maxsize=_PER_DOMAIN)(self._build_shard)
        self._labels = lru_cache(maxsize=_PER_DOMAIN)(self._read_labels)
        self._order = lru_cache(maxsize=_PER_DOMAIN)(self._shuffle_shards)

    def row(self, epoch: int, index: int) -> Row:
        """Return one sequence."""
        shard, index = part_of(*self._order(epoch), self.sequences, index)
        with readable(self._corpus.prefixes(self._domain, "train")[shard]):
            dataset, labels = self._shard(epoch, shard), self._labels(shard)
            item = dataset[index]
        ids = torch.cat([item["tokens"], item["labels"][-1:]])
        if labels is None:
            label = self._corpus.domains.index(self._domain)
            return Row(ids, torch.full((self._seq_length,), label))
        # its documents follow each other in the dataset's own order of them
        first = dataset.sample_index[dataset.shuffle_index[index]][0]
        counts = tokens_by_document(ids.numpy(), self._corpus.eod_id)
        documents = dataset.document_index[first : first + len(counts)]
        return Row(ids, torch.from_numpy(np.repeat(labels[documents], counts)))

    def epochs(self, sequences: int) -> float:
        """Return how often the domain was gone through after so many sequences of the stage, in all
        of its orders."""
        passes = (self.start + sequences) / int(self.sequences.sum())
        for seq_length, count in self._earlier:
            passes += count / int(sequences_by_shard(self._corpus, self._domain, seq_length).sum())
        return passes

    def _seed(self, epoch: int, *more: int) -> np.random.SeedSequence:
        return np.random.SeedSequence([*self._seeds, epoch, *more])

    def _shuffle_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of an epoch in their order, and how many sequences end with each."""
        order = np.random.default_rng(self._seed(epoch)).permutation(len(self.sequences))
        return order, np.cumsum(self.sequences[order])

    def _read_labels(self, shard: int) -> NDArray[np.int64] | None:
        """Return the label of every document of a shard; None: the corpus was built without."""
        file = self._corpus.label_file(self._domain, "train", shard)
        return None if file is None else file.of_documents()

    def _build_shard(self, epoch: int, shard: int) -> Any:
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.utils import Split

        logging.getLogger("megatron.core.datasets.gpt_dataset").setLevel(logging.ERROR)
        prefix = self._corpus.prefixes(self._domain, "train")[shard]
        check_there(prefix)
        config = GPTDatasetConfig(
            random_seed=int(self._seed(epoch, shard).generate_state(1)[0]),
            sequence_length=self._seq_length,
            blend=([prefix], [1.0]),
            split="1,0,0",
            # An empty path builds the index in memory; every rank does so for itself, without a
            # barrier.
            path_to_cache="",
            tokenizer=SimpleNamespace(
                eod=self._corpus.eod_id, vocab_size=None, unique_identifiers={}
            ),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        documents = GPTDataset.build_low_level_dataset(prefix, config)
        indices = np.arange(GPTDataset.numel_low_level_dataset(documents), dtype=np.int32)
        dataset = GPTDataset(documents, prefix, indices, None, Split.train, config)
        if len(dataset) != self.sequences[shard]:
            raise RuntimeError(
                f"{prefix}: megatron-core finds {len(dataset)} sequences of {self._seq_length} "
                f"tokens, its tokens make {self.sequences[shard]}"
            )
        return dataset

"""A corpus of several shards a domain, read at the length it was cut for and at another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from data_pipeline.driver import prepare
from loopcoder.config.data import DataConfig, ResolvedStage
from loopcoder.data.blend import Blend
from loopcoder.data.corpus import Corpus
from loopcoder.data.megatron import MegatronReader
from tests.data.corpora import stream

SHARDS = 3


@pytest.fixture
def sharded(data: Callable[..., DataConfig], seed: int) -> Corpus:
    fields = {"shards": SHARDS, "seq_length": random.Random(seed).randint(11, 24)}
    return prepare(data(**fields), report=lambda _: None)


def of_domain(corpus: Corpus, domain: str, seq_length: int, seed: int) -> Blend:
    return Blend(corpus, ResolvedStage({domain: 1.0}, seq_length, 1e4), 0, seed)


def cut_for(corpus: Corpus) -> int:
    return int(corpus.manifest["seq_length"])


def epoch(blend: Blend, corpus: Corpus, domain: str, number: int) -> list[list[int]]:
    size = sum((n - 1) // blend.seq_length for n in corpus.shard_tokens(domain, "train"))
    return blend.rows(np.arange(number * size, (number + 1) * size)).ids.tolist()


@pytest.mark.parametrize("domain", ["text", "code"])
def test_an_epoch_is_exactly_what_the_shards_hold(sharded: Corpus, seed: int, domain: str) -> None:
    length = cut_for(sharded)
    sequences = sharded.manifest["domains"][domain]["train"]["sequences"]
    rows = epoch(of_domain(sharded, domain, length, seed), sharded, domain, 0)
    assert len(rows) == sequences
    # at its own length every token of a shard is read but for its last, which is a label only
    seen = Counter(t for row in rows for t in row[:-1])
    assert seen.total() == sharded.tokens(domain, "train") - SHARDS
    assert seen <= Counter(stream(sharded, domain, "train"))


@pytest.mark.parametrize("domain", ["text", "code"])
def test_another_length_leaves_less_than_a_sequence_of_each_shard(
    sharded: Corpus, seed: int, domain: str
) -> None:
    length = cut_for(sharded) + random.Random(seed).choice((-7, -3, 2, 5))
    rows = epoch(of_domain(sharded, domain, length, seed), sharded, domain, 1)
    seen = Counter(t for row in rows for t in row[:-1])
    assert seen <= Counter(stream(sharded, domain, "train"))
    assert seen.total() > sharded.tokens(domain, "train") - SHARDS * (length + 1)


def test_shards_come_in_an_order_of_seed_and_epoch(sharded: Corpus, seed: int) -> None:
    length = cut_for(sharded)
    blend = of_domain(sharded, "code", length, seed)
    reader = MegatronReader(sharded, "code", length, (seed, 0, sharded.domains.index("code")))
    orders = {tuple(reader._order(number)[0].tolist()) for number in range(30)}
    assert all(sorted(order) == list(range(SHARDS)) for order in orders)
    assert len(orders) > 1
    first = epoch(blend, sharded, "code", 0)
    assert first == epoch(of_domain(sharded, "code", length, seed), sharded, "code", 0)
    assert first != epoch(of_domain(sharded, "code", length, seed + 1), sharded, "code", 0)
    assert first != epoch(blend, sharded, "code", 1)


def test_any_sample_alone_is_the_same_as_in_a_walk(sharded: Corpus, seed: int) -> None:
    stage = ResolvedStage({"text": 1.0, "code": 1.0}, cut_for(sharded), 1e4)
    walked, domains, labels, _ = Blend(sharded, stage, 0, seed).rows(np.arange(600))
    alone = Blend(sharded, stage, 0, seed)
    for i in random.Random(seed).sample(range(600), 40):
        row, domain, label, _ = alone.rows(np.array([i]))
        assert torch.equal(row[0], walked[i]) and domain.tolist() == [domains[i]]
        assert torch.equal(label[0], labels[i])


def test_both_domains_end_together(sharded: Corpus, seed: int) -> None:
    """After one pass over the pairs, both domains have given each of their sequences once."""
    stage = ResolvedStage({"text": 1.0, "code": 1.0}, cut_for(sharded), 1e4)
    blend = Blend(sharded, stage, 0, seed)
    sequences = sharded.manifest["domains"]["text"]["train"]["sequences"]
    assert blend.epochs(2 * sequences) == {"text": 1.0, "code": 1.0}

"""The ledger has every token that was trained, by what it is of, whatever happens to the run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from loopcoder.checkpoint.state import CheckpointState
from loopcoder.config.data import DataConfig, StageConfig
from loopcoder.config.schema import BatchRampConfig, Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.labels import Label
from loopcoder.data.ledger import Ledger, LedgerEntry, count_labels
from loopcoder.data.loader import Loader
from loopcoder.data.sampler import Position
from tests.checkpoint.states import state_at
from tests.configs import small_config
from tests.data.corpora import trained_labels

STEPS = 24


@pytest.fixture
def config(data: Callable[..., DataConfig], seed: int) -> Config:
    """A stage of one length and mixture, then one of others; the batch grows meanwhile."""
    stages = [
        StageConfig(until=1200, seq_length=16, mixture={"text": 1, "code": 3}),
        StageConfig(seq_length=24, mixture={"text": 1, "code": 1}),
    ]
    base = small_config()
    ramp = BatchRampConfig(start=4, increment=4, samples=30)
    train = replace(
        base.train, max_steps=STEPS, global_batch_size=8, micro_batch_size=1, batch_ramp=ramp
    )
    return replace(base, data=data(stages=stages, prefetch_steps=3), seed=seed, train=train)


def test_exact_over_kills_other_ranks_a_ramp_and_stages(
    corpus: Corpus, config: Config, seed: int
) -> None:
    """As a run does: what is done since the last checkpoint is lost with what was read ahead."""
    rng, saved = random.Random(seed), state_at(0, ledger=Ledger())
    starts = 0
    while saved.position.step < STEPS:
        saved = CheckpointState.from_json(json.loads(json.dumps(saved.to_json())))
        position, ranks, starts = saved.position, rng.choice([1, 2, 4]), starts + 1
        loaders = [Loader(config, corpus, position, r, ranks, pin=False) for r in range(ranks)]
        counts = np.zeros((ranks, len(corpus.labels)), dtype=np.int64)
        killed_at = position.step + rng.randint(1, 7)
        for parts in zip(*loaders, strict=True):
            counts += [part.label_tokens for part in parts]
            position = parts[0].after
            if position.step % 3 == 0:
                ledger = saved.ledger.plus(corpus.labels, counts.sum(0))
                ledger.check(position)
                saved, counts = state_at(0, position=position, ledger=ledger), counts * 0
            if position.step == killed_at:
                break
        for loader in loaders:
            loader.close()
    assert starts > 3 and saved.ledger.since_step == 0
    expected = trained_labels(config, corpus)
    found = {Label(e.domain, e.language, e.source): e.tokens for e in saved.ledger.entries}
    assert found == expected
    assert saved.ledger.tokens == saved.position.tokens == expected.total()


def test_tokens_of_another_corpus_are_added_by_what_they_are_of() -> None:
    """Labels have other numbers there."""
    first = (Label("code", "c++", "a"), Label("text", None, None), Label("code", "c", "a"))
    ledger = Ledger().plus(first, np.array([5, 7, 0])).plus(first[::-1], np.array([1, 0, 2]))
    assert ledger.entries == (
        LedgerEntry("code", "c", "a", 1),
        LedgerEntry("code", "c++", "a", 7),
        LedgerEntry("text", None, None, 7),
    )
    more = ledger.plus([Label("text", "english", None)], np.array([3]))
    assert more.entries[2:] == (
        LedgerEntry("text", "english", None, 3),
        LedgerEntry("text", None, None, 7),
    )
    assert (more.tokens, ledger.tokens) == (18, 15)


def test_a_run_of_an_earlier_version_counts_from_its_checkpoint_on() -> None:
    position = Position(step=40, tokens=4000)
    ledger = Ledger.from_here(position).plus([Label("text", None, None)], np.array([100]))
    ledger.check(replace(position, step=41, tokens=4100))
    assert (ledger.since_step, ledger.since_tokens, ledger.tokens) == (40, 4000, 100)
    with pytest.raises(ValueError, match=r"100 tokens after the 4,000 .* 40 steps, .* 4,000"):
        ledger.check(position)


def test_its_file_says_where_the_run_stood() -> None:
    ledger = Ledger(entries=(LedgerEntry("code", "c++", None, 5),))
    assert json.loads(json.dumps(ledger.as_file(Position(step=2, tokens=5)))) == {
        "step": 2,
        "tokens": 5,
        "since_step": 0,
        "since_tokens": 0,
        "entries": [{"domain": "code", "language": "c++", "source": None, "tokens": 5}],
    }


@pytest.mark.parametrize("longest", [1, 5, 200])
def test_labels_are_counted_by_their_runs(seed: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    runs = rng.integers(1, longest + 1, 120)
    ids = np.repeat(rng.integers(0, 9, 120), runs)[:120].reshape(3, 40)
    total = np.arange(12)
    count_labels(total, ids)
    assert total.tolist() == [int((ids == i).sum()) + i for i in range(12)]

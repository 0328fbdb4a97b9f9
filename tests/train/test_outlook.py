"""What a run says before its first step."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from loopcoder.config.data import StageConfig
from loopcoder.config.schema import BatchRampConfig
from loopcoder.data.sampler import Position, advance
from loopcoder.metrics.words import human
from loopcoder.model.flops import train_flops_per_token
from tests.configs import small_config


def corpus(tokens: int, *, has_labels: bool = True) -> Any:
    corpus = SimpleNamespace(
        domains=("text", "code"),
        tokens=lambda domain, split: tokens,
        shard_tokens=lambda domain, split: [tokens],
        part=lambda domain: (corpus, domain),
        seed=lambda domain: (0,),
        eod_id=0,
        has_labels=has_labels,
        has_digests=False,
        is_packed=False,
        url=None,
        members=(),
    )
    return corpus


def test_parameters_tokens_and_epochs() -> None:
    from loopcoder.train.outlook import outlook

    config = small_config()
    config = replace(config, train=replace(config.train, max_steps=100))
    # 100 steps of 8 sequences of 32, half of each domain; 3201 tokens make 100 sequences
    first, second = outlook(config, corpus(3201), 128, Position())
    assert "parameters, used in 2 loops" in first and "25.6k tokens in 100 steps" in first
    assert "text 4" in second and "code 4" in second
    warned = outlook(config, corpus(1601), 128, Position())
    assert "text 8" in warned[1] and "warning" in warned[2]
    # what a resumed run has left, and the epochs at its end
    left = outlook(config, corpus(3201), 128, Position(step=75, sample=600, samples=600))
    assert "6.4k tokens in 25 steps" in left[0] and "text 4" in left[1]


def test_a_corpus_without_labels_is_said() -> None:
    from loopcoder.train.outlook import outlook

    plain = outlook(small_config(), corpus(3201), 128, Position())
    said = outlook(small_config(), corpus(3201, has_labels=False), 128, Position())
    (note,) = (line for line in said if line not in plain)
    assert "losses and tokens are counted by domain" in note


@pytest.mark.parametrize("step", [0, 3, 9])
def test_a_ramp_counts_as_it_is_trained(step: int) -> None:
    from loopcoder.train.outlook import outlook

    config = small_config()
    ramp = BatchRampConfig(start=2, increment=2, samples=20)
    config = replace(config, train=replace(config.train, max_steps=12, batch_ramp=ramp))
    positions = [Position()]
    for _ in range(12):
        positions.append(advance(config, positions[-1])[0])
    tokens = positions[-1].tokens - positions[step].tokens
    (line, *_) = outlook(config, corpus(3201), 128, positions[step])
    assert f"{human(tokens)} tokens in {12 - step} steps" in line


def test_stages_count_together() -> None:
    """What a domain gives in one stage counts in the next; another length has epochs of its own,
    which count as well."""
    from loopcoder.train.outlook import outlook

    config = small_config()
    # 10 steps of 4 and 4 of 100 sequences each, then 20 steps of 8 of 50 twice as long
    stages = [
        StageConfig(until=10 * 8 * 32, mixture={"text": 1.0, "code": 1.0}),
        StageConfig(mixture={"code": 1.0}, seq_length=64),
    ]
    config = replace(
        config,
        data=replace(config.data, stages=stages),
        train=replace(config.train, max_steps=30),
    )
    lines = outlook(config, corpus(3201), 128, Position())
    assert f"{human(10 * 8 * 32 + 20 * 8 * 64)} tokens in 30 steps" in lines[0]
    assert lines[1].endswith("epochs at the end: code 3.6, text 0.4")
    lengths = ((10 * 8 * 32, 32), (20 * 8 * 64, 64))
    flops = sum(n * train_flops_per_token(config.model, 128, length)[0] for n, length in lengths)
    assert f"{flops / 1e15:.3g} PFLOP" in lines[0]
    older = outlook(config, corpus(3201), 128, Position(before=None))
    assert older[1] == "corpus: 3.2k of text, 3.2k of code (tokens)"

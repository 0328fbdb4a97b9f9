"""Losses by language and source: which have one, what they are, and that they change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from loopcoder.data.labels import Label
from loopcoder.train.labels import OTHER, UNKNOWN, Groups, LabelLosses, groups_of, label_losses
from tests.configs import small_config
from tests.dist.layouts import DOMAINS, GROUPS, VOCAB, global_batch, microbatches
from tests.weights import randomise

THREE = {("code", "python", "b"): 50, ("code", "c++", "b"): 900, ("code", "java", "b"): 7}


def corpus_of(tokens: dict[tuple[str, str | None, str | None], int]) -> Any:
    """A corpus with these labels, and so many tokens of each."""
    labels, counts = tuple(Label(*label) for label in tokens), np.array([*tokens.values()])
    return SimpleNamespace(labels=labels, label_tokens=lambda split: counts)


def test_languages_and_sources_come_by_their_tokens() -> None:
    labels = THREE | {("code", "python", "a"): 1000, ("text", "python", "c"): 1}
    language, source = groups_of(corpus_of(labels), 64)
    assert language == Groups("language", ("python", "c++", "java"), (0, 1, 2, 0, 0))
    assert source == Groups("source", ("a", "b", "c"), (1, 1, 1, 0, 2))


@pytest.mark.parametrize(
    ("most", "names", "of_label"),
    [
        (1, ("c++", OTHER), (1, 0, 1)),
        (2, ("c++", "python", OTHER), (1, 0, 2)),
        (3, ("c++", "python", "java"), (1, 0, 2)),
    ],
)
def test_what_is_beyond_the_most_frequent_ones_is_one_group(
    most: int, names: tuple[str, ...], of_label: tuple[int, ...]
) -> None:
    assert groups_of(corpus_of(THREE), most) == [Groups("language", names, of_label)]


def test_a_language_that_is_called_other_is_part_of_the_rest() -> None:
    labels = THREE | {("code", OTHER, "b"): 1000}
    assert groups_of(corpus_of(labels), 1) == [Groups("language", (OTHER,), (0, 0, 0, 0))]


def test_documents_of_which_it_is_not_known_are_a_group() -> None:
    (language,) = groups_of(corpus_of({("text", None, None): 9, ("code", "c++", None): 8}), 64)
    assert language.names == (UNKNOWN, "c++")


@pytest.mark.parametrize("language", [None, "c++"])
def test_one_language_or_none_has_no_loss_of_its_own(language: str | None) -> None:
    """That of a corpus without files of labels is None."""
    labels = {(domain, language, None): 5 for domain in ("text", "code")}
    assert groups_of(corpus_of(labels), 64) == []


@pytest.mark.parametrize("most", [0, 1, 64])
def test_none_are_kept_where_none_are_asked_for(most: int) -> None:
    assert (label_losses(corpus_of(THREE), most, torch.device("cpu")) is None) == (most == 0)


def draw(seed: int, labels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masked losses, mask and labels of one microbatch."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(3, 50, generator=generator) < 0.9).float()
    loss = torch.rand(3, 50, generator=generator) * 9
    return loss * mask, mask, torch.randint(0, labels, (3, 50), generator=generator)


def test_sums_are_those_of_each_token(seed: int) -> None:
    losses = LabelLosses(GROUPS, torch.device("cpu"))
    parts = [draw(seed + i, 6) for i in range(3)]
    for part in parts:
        losses.add(*part)
    masked, mask, labels = (torch.cat(x).double() for x in zip(*parts, strict=True))
    fields = losses.fields("loss")
    for groups in GROUPS:
        own = np.array(groups.of_label)[labels.int().numpy()]
        weighted = 0.0
        for index, name in enumerate(groups.names):
            here = torch.from_numpy(own == index)
            mean = (masked[here].sum() / mask[here].sum()).item()
            assert fields[f"loss/{groups.kind}/{name}"] == pytest.approx(mean, rel=1e-6)
            weighted += fields[f"loss/{groups.kind}/{name}"] * mask[here].sum().item()
        assert weighted == pytest.approx(masked.sum().item(), rel=1e-6)
    assert len(fields) == 5


def test_a_group_without_tokens_has_no_loss_and_a_bad_one_spoils_no_other(seed: int) -> None:
    losses = LabelLosses([Groups("language", ("a", "b", "c"), (0, 1, 2))], torch.device("cpu"))
    masked, mask, labels = draw(seed, 2)
    spoilt = (labels == 1).nonzero()[0].tolist()
    masked[tuple(spoilt)] = bad = [math.nan, math.inf][seed % 2]
    losses.add(masked, mask, labels)
    fields = losses.fields("loss")
    assert fields.keys() == {"loss/language/a", "loss/language/b"}
    assert math.isfinite(fields["loss/language/a"])
    assert str(fields["loss/language/b"]) == str(bad)


@pytest.mark.parametrize("loops", [1, 2])
def test_a_step_is_the_same_with_them(ranks: Any, seed: int, loops: int) -> None:
    """Bit for bit: gradients and sums by domain; those by label equal a direct computation in
    every layout (tests/dist)."""
    from loopcoder.train.measures import Measures
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    config = small_config(dict(num_loops=loops))
    config = replace(config, train=replace(config.train, global_batch_size=4))
    batches = microbatches(config, global_batch(seed, 0, 4, 32), True, 0, 1)
    found = []
    for by_label in (None, LabelLosses(GROUPS, ranks.device)):
        state = build_state(config, ranks, VOCAB)
        randomise(state.network, torch.Generator().manual_seed(seed))
        sums = forward_backward(state, batches, DOMAINS, Measures(by_label=by_label))
        found.append((sums, *(p.main_grad.clone() for p in state.network.parameters())))
    assert all(map(torch.equal, *found))
    once = by_label.sums.clone()
    forward_backward(state, batches, DOMAINS, Measures(by_label=by_label))  # begins anew
    assert torch.equal(once, by_label.sums)

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
from loopcoder.train.labels import OTHER, UNKNOWN, Groups, LabelLosses, groups_of
from tests.configs import small_config
from tests.dist.layouts import DOMAINS, GROUPS, VOCAB, global_batch, microbatches
from tests.weights import randomise

LANGUAGES = {"python": 50, "c++": 900, "java": 7}


def corpus_of(*labels: Label, **languages: int) -> Any:
    """A corpus with these labels, and so many tokens of each language of code."""
    domains = list(dict.fromkeys(label.domain for label in labels))
    tokens = {name: {"documents": 1, "tokens": n} for name, n in languages.items()}
    splits = {d: {"train": {"languages": tokens if d == "code" else {}}} for d in domains}
    return SimpleNamespace(domains=domains, labels=labels, manifest={"domains": splits})


def code(language: str | None, source: str | None = None) -> Label:
    return Label("code", language, source)


def test_languages_come_by_their_tokens_and_sources_as_they_are_named() -> None:
    labels = [code("python", "b"), code("c++", "a"), code("java", "b"), code("c++", "b")]
    language, source = groups_of(corpus_of(*labels, **LANGUAGES), 64)
    assert language == Groups("language", ("c++", "python", "java"), (1, 0, 2, 0))
    assert source == Groups("source", ("b", "a"), (0, 1, 0, 0))


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
    corpus = corpus_of(code("python"), code("c++"), code("java"), **LANGUAGES)
    assert groups_of(corpus, most) == [Groups("language", names, of_label)]


def test_a_language_that_is_called_other_is_part_of_the_rest() -> None:
    corpus = corpus_of(code("python"), code(OTHER), code("java"), python=1, java=2, other=3)
    assert groups_of(corpus, 1) == [Groups("language", (OTHER,), (0, 0, 0))]


def test_documents_of_which_it_is_not_known_are_a_group() -> None:
    (language,) = groups_of(corpus_of(Label("text", None, None), code("c++")), 64)
    assert language.names == ("c++", UNKNOWN) or language.names == (UNKNOWN, "c++")


@pytest.mark.parametrize("languages", [(None, None), ("c++", "c++")])
def test_a_corpus_without_files_of_labels_has_none(languages: tuple[Any, ...]) -> None:
    labels = [Label(d, name, None) for d, name in zip(("text", "code"), languages, strict=True)]
    assert groups_of(corpus_of(*labels), 64) == []


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
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    config = small_config(dict(num_loops=loops))
    config = replace(config, train=replace(config.train, global_batch_size=4))
    batches = microbatches(config, global_batch(seed, 0, 4, 32), True, 0, 1)
    found = []
    for by_label in (None, LabelLosses(GROUPS, ranks.device)):
        state = build_state(config, ranks, VOCAB)
        randomise(state.network, torch.Generator().manual_seed(seed))
        sums = forward_backward(state, batches, DOMAINS, None, by_label)
        found.append((sums, *(p.main_grad.clone() for p in state.network.parameters())))
    assert all(map(torch.equal, *found))
    once = by_label.sums.clone()
    forward_backward(state, batches, DOMAINS, None, by_label)  # begins anew
    assert torch.equal(once, by_label.sums)

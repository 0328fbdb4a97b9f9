"""Packed rows laid end to end in one are the same model: losses, sums and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.configs import small_config
from tests.model.test_reference import CASES, VOCAB, build, random_starts
from tests.weights import named, randomise


@pytest.mark.parametrize("case", CASES)
def test_same_losses_and_gradients(ranks, seed, case):
    """In float64, where what is left is the order of sums."""
    from loopcoder.model.documents import Documents

    generator = torch.Generator().manual_seed(seed)
    network, model = build(ranks, **CASES[case])
    network.double()
    randomise(network, generator)
    tokens, labels = torch.randint(0, VOCAB, (2, 3, 24), generator=generator)
    weights = torch.rand(3, 24, generator=generator, dtype=torch.float64)
    docs = Documents.packed(random_starts(generator, 3, 24))
    found = []
    for ids, next_ids, where in (
        (tokens, labels, docs),
        (tokens.view(1, -1), labels.view(1, -1), docs.as_one_row()),
    ):
        network.zero_grad()
        loss = network(ids, where, next_ids)
        (loss * weights.view(loss.shape)).sum().backward()
        found.append((loss.detach().view(3, 24), named(network, model, grad=True)))
    (rows, rows_gradients), (one, one_gradients) = found
    torch.testing.assert_close(one, rows, rtol=1e-10, atol=1e-10)
    for name, gradient in rows_gradients.items():
        torch.testing.assert_close(one_gradients[name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_sums_stay_those_of_the_rows_domains(ranks, seed):
    """A whole step: losses and tokens by domain, and the gradients of the step."""
    from loopcoder.data.batch import make_batch
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    generator = torch.Generator().manual_seed(seed)
    state = build_state(small_config(), ranks, VOCAB)
    rows = torch.randint(0, 12, (4, 33), generator=generator)
    domains = torch.tensor([0, 1, 1, 2])
    batches = [
        make_batch(rows[i : i + 2], torch.arange(2), domains[i : i + 2], eod=3) for i in (0, 2)
    ]
    found = []
    for step in (batches, [batch.as_one_row() for batch in batches]):
        sums = forward_backward(state, step, 3)
        found.append((sums, [p.main_grad.clone() for p in state.network.parameters()]))
    (sums, gradients), (one_sums, one_gradients) = found
    assert torch.equal(one_sums[1], sums[1]) and (sums[1] > 0).all()
    torch.testing.assert_close(one_sums, sums, rtol=1e-5, atol=1e-5)
    for one, apart in zip(one_gradients, gradients, strict=True):
        torch.testing.assert_close(one, apart, rtol=1e-3, atol=1e-4)

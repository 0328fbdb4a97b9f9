"""The model against an independent float64 reference: logits of every loop, loss and all
gradients."""

from __future__ import annotations

import pytest
import torch

from tests import reference
from tests.configs import small_config
from tests.reference import Rounding, arguments, errors, evaluate, relative
from tests.weights import named, randomise

VOCAB = 128
CASES = {
    "r1": dict(num_loops=1),
    "r2": dict(num_loops=2),
    "r3": dict(num_loops=3),
    "r4_deep": dict(num_loops=4, num_layers=3),
    "query_gate": dict(num_loops=3, gate="query"),
    "no_gqa": dict(num_loops=2, num_kv_heads=4),
    "one_kv_head": dict(num_loops=2, num_kv_heads=1),
    "window_longer_than_sequence": dict(num_loops=3, window=64),
    "window_self_only": dict(num_loops=2, window=0),
    "no_shift": dict(num_loops=3, shift=False),
    "own_kv": dict(num_loops=3, kv_sharing="own"),
    "norm_once": dict(num_loops=3, norm_per_loop=False),
    "no_scales": dict(num_loops=3, emb_scale=None, hidden_scale=None),
    "other_scales": dict(num_loops=2, emb_scale=0.3, hidden_scale=1.7),
    "wide_heads": dict(num_loops=2, head_dim=16),
}


def build(ranks, **model):
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    config = small_config(model)
    network = PLTModel(transformer_config(config), config.model, VOCAB, ranks.groups)
    return network, config.model


def random_starts(generator, batch, length):
    """Random document borders, documents of one token among them."""
    is_start = torch.rand(batch, length, generator=generator) < 0.15
    is_start[:, 0] = True
    is_start[0, 5:8] = True
    index = torch.arange(length).expand(batch, length)
    return torch.where(is_start, index, 0).cummax(1).values


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(ranks, seed, case, packed):
    from loopcoder.model.documents import Documents
    from loopcoder.model.probe import LoopProbe

    generator = torch.Generator().manual_seed(seed)
    network, model = build(ranks, **CASES[case])
    randomise(network, generator)
    length = int(torch.randint(20, 40, (), generator=generator))
    tokens = torch.randint(0, VOCAB, (2, length), generator=generator)
    labels = torch.randint(0, VOCAB, (2, length), generator=generator)
    mask = torch.rand(2, length, generator=generator) < 0.8
    if packed:
        docs = Documents.packed(random_starts(generator, 2, length))
    else:
        docs = Documents.whole_rows(2, length, torch.device("cpu"))
    rounding = Rounding(
        named(network, model), lambda w: evaluate(w, model, tokens, labels, mask, docs.start), seed
    )

    logits = network(tokens, docs, every_loop=True)
    assert torch.equal(network(tokens, docs), logits[-1])
    probe = LoopProbe(model.num_loops, torch.device("cpu"), losses=True, gradients=True)
    probe.loss_mask = mask
    loss = (network(tokens, docs, labels, probe=probe) * mask).sum() / mask.sum()
    loss.backward()
    losses = [*(probe.sums[0, :-1] / mask.sum()), loss]
    by_loop = {"logits": logits, "loss": losses, "gradient at input": probe.sums[1]}
    ours = {f"{kind} {r}": x for kind, xs in by_loop.items() for r, x in enumerate(xs)}
    ours |= named(network, model, grad=True)
    assert ours.keys() == rounding.exact.keys()
    assert not rounding.beyond(errors(ours, rounding.exact))


@pytest.mark.parametrize("loops", [2, 3])
def test_gradients_are_those_of_an_untied_copy_summed(ranks, seed, loops):
    from loopcoder.model.documents import Documents

    generator = torch.Generator().manual_seed(seed)
    network, model = build(ranks, num_loops=loops)
    randomise(network, generator)
    tokens = torch.randint(0, VOCAB, (1, 24), generator=generator)
    labels = torch.randint(0, VOCAB, (1, 24), generator=generator)
    docs = Documents.packed(random_starts(generator, 1, 24))
    weights, counts = named(network, model), torch.ones_like(labels)
    rounding = Rounding(
        weights, lambda w: evaluate(w, model, tokens, labels, counts, docs.start), seed
    )
    copies = [{n: w.clone().requires_grad_() for n, w in weights.items()} for _ in range(loops)]
    logits = reference.forward(
        copies[0], tokens[0], docs.start[0], untied=copies, **arguments(model)
    )[-1]
    torch.nn.functional.cross_entropy(logits, labels[0]).backward()
    network(tokens, docs, labels).mean().backward()
    summed = {n: sum(c[n].grad for c in copies if c[n].grad is not None) for n in weights}
    assert not rounding.beyond(errors(named(network, model, grad=True), summed))


@pytest.mark.parametrize("case", ["r3", "query_gate"])
def test_other_orders_of_summation_change_no_more_than_rounding(ranks, seed, case):
    generator = torch.Generator().manual_seed(seed)
    network, model = build(ranks, **CASES[case])
    randomise(network, generator)
    tokens, labels = torch.randint(0, VOCAB, (2, 2, 24), generator=generator)
    start, mask = random_starts(generator, 2, 24), torch.ones(2, 24)
    weights = named(network, model)
    orders = {"d": torch.randperm(32, generator=generator)}
    orders["f"] = torch.randperm(48, generator=generator)
    back = {axis: order.argsort() for axis, order in orders.items()}
    others = {name: reference.reorder(name, w, orders) for name, w in weights.items()}
    moved = [name for name, w in weights.items() if not torch.equal(others[name], w)]
    assert [n for n in weights if n not in moved] == [
        n for n in weights if n.endswith("bias") or (case == "query_gate" and "plt_gate" in n)
    ]
    exact, found = (evaluate(w, model, tokens, labels, mask, start) for w in (weights, others))
    found = {name: reference.reorder(name, x, back) for name, x in found.items()}
    assert max(errors(found, exact).values()) <= 1e-10


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("case", ["r1", "r3", "query_gate", "own_kv"])
def test_recompute_changes_nothing(ranks, seed, case, recompute):
    from loopcoder.model.documents import Documents
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    generator = torch.Generator().manual_seed(seed)
    plain, _ = build(ranks, **CASES[case])
    randomise(plain, generator)
    config = small_config(CASES[case], recompute=recompute)
    recomputed = PLTModel(transformer_config(config), config.model, VOCAB, ranks.groups)
    recomputed.load_state_dict(plain.state_dict())
    tokens, labels = torch.randint(0, VOCAB, (2, 2, 24), generator=generator)
    docs = Documents.packed(random_starts(generator, 2, 24))
    for network in (plain, recomputed):
        network(tokens, docs, labels).mean().backward()
    for (name, a), (_, b) in zip(
        plain.named_parameters(), recomputed.named_parameters(), strict=True
    ):
        # Equal up to the order in which the gradients of the loops are added.
        assert relative(a.grad, b.grad.double()) <= 2e-6, name


@pytest.mark.parametrize("case", ["r2", "r3", "query_gate", "own_kv", "no_shift"])
def test_nothing_leaks(ranks, seed, case):
    """No gradient crosses a document border or runs from a position to a later one's embedding."""
    from loopcoder.model.documents import Documents

    generator = torch.Generator().manual_seed(seed)
    network, _ = build(ranks, **CASES[case])
    randomise(network, generator)
    length = 24
    tokens = torch.randint(0, VOCAB, (1, length), generator=generator)
    docs = Documents.packed(random_starts(generator, 1, length))
    kept = {}

    def keep(module, inputs, output):
        kept["embedding"] = output
        output.retain_grad()

    network.embedding.register_forward_hook(keep)
    for t in range(length):
        loss = network(tokens, docs)[t].square().sum()
        loss.backward()
        reached = kept["embedding"].grad[:, 0].abs().sum(-1) > 0
        index = torch.arange(length)
        assert not reached[(index < docs.start[0, t]) | (index > t)].any()
        assert reached[t]


def test_one_loop_equals_megatron_dense_model(ranks, seed):
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from loopcoder.model.documents import Documents

    generator = torch.Generator().manual_seed(seed)
    network, model = build(ranks, num_loops=1)
    randomise(network, generator)
    dense = GPTModel(
        network.config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        VOCAB,
        64,
        position_embedding_type="rope",
        rotary_base=model.rope_theta,
        share_embeddings_and_output_weights=False,
        parallel_output=True,
    )
    dense.load_state_dict(network.state_dict())
    tokens, labels = torch.randint(0, VOCAB, (2, 2, 32), generator=generator)
    docs = Documents.whole_rows(2, 32, torch.device("cpu"))
    mask = torch.triu(torch.ones(32, 32, dtype=torch.bool), 1)[None, None]
    ours = network(tokens, docs, labels)
    theirs = dense(tokens, docs.position_ids, mask, labels=labels)
    assert relative(ours, theirs.double()) <= 1e-5
    ours.mean().backward()
    theirs.mean().backward()
    for (name, a), (_, b) in zip(network.named_parameters(), dense.named_parameters(), strict=True):
        assert relative(a.grad, b.grad.double()) <= 1e-5, name

"""The Transformer Engine layers compute the same model as the plain PyTorch ones. Needs a GPU and
TE."""

from __future__ import annotations

import pytest
import torch

from loopcoder.hf.mapping import plain_name
from tests.configs import small_config
from tests.weights import randomise

pytestmark = pytest.mark.gpu

VOCAB, LENGTH = 256, 192
WIDE = dict(
    hidden_size=256, ffn_hidden_size=512, num_attention_heads=4, num_kv_heads=2, head_dim=64
)
CASES = {
    "r1": dict(num_loops=1),
    "r2": dict(num_loops=2, window=64),
    "r3": dict(num_loops=3, window=16),
    "query_gate": dict(num_loops=2, gate="query"),
    "own_kv": dict(num_loops=2, kv_sharing="own"),
    "norm_once": dict(num_loops=2, norm_per_loop=False),
    "r2_cuda": dict(num_loops=2, window=64, kernels="cuda"),
    "r3_cuda": dict(num_loops=3, window=16, kernels="cuda"),
    "query_gate_cuda": dict(num_loops=2, gate="query", kernels="cuda"),
}


def build(ranks, spec, precision, case, **parallel):
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    model = WIDE | CASES[case] | dict(layer_spec=spec)
    if spec == "torch":
        model["kernels"] = "stock"
    config = small_config(model, precision, **parallel)
    mcore = transformer_config(config)
    mcore.gradient_accumulation_fusion = False  # no DDP here, so there is no main_grad to add to
    return PLTModel(mcore, config.model, VOCAB, ranks.groups).cuda()


def copy_weights(source, target):
    weights = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            parameter.copy_(weights[plain_name(name)])


def run(network, tokens, docs, labels):
    loss = network(tokens, docs, labels)
    loss.mean().backward()
    grads = {plain_name(n): p.grad.float() for n, p in network.named_parameters()}
    return loss.float(), grads


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_same_model(ranks, seed, case, batch, packed, recompute):
    from loopcoder.model.documents import Documents
    from tests.model.test_reference import random_starts

    generator = torch.Generator().manual_seed(seed)
    exact = build(ranks, "torch", "fp32", case).cpu()
    randomise(exact, generator)
    exact.cuda()
    tokens, labels = torch.randint(0, VOCAB, (2, batch, LENGTH), generator=generator).cuda()
    if packed:
        docs = Documents.packed(random_starts(generator, batch, LENGTH).cuda())
    else:
        docs = Documents.whole_rows(batch, LENGTH, tokens.device)
    expected, expected_grads = run(exact, tokens, docs, labels)
    errors = {}
    for spec in ("torch", "te"):
        network = build(ranks, spec, "bf16", case, recompute=recompute)
        copy_weights(exact, network)
        loss, grads = run(network, tokens, docs, labels)
        errors[spec] = {n: error(grads[n], g) for n, g in expected_grads.items()}
        errors[spec]["loss"] = error(loss, expected)
        whole = [
            torch.cat([g[n].flatten() for n in expected_grads]) for g in (grads, expected_grads)
        ]
        errors[spec]["all gradients"] = error(*whole)
    for name, found in errors["te"].items():
        # A single small tensor (four gate biases) scatters more than all of them together.
        times, floor = (2, 5e-3) if name in ("loss", "all gradients") else (4, 2e-2)
        assert found <= times * errors["torch"][name] + floor, (name, found, errors["torch"][name])


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("case", ["r1", "r2", "r3", "r2_cuda", "r3_cuda"])
def test_accumulated_gradients(ranks, seed, case, rounds):
    """Through DDP and fused accumulation, every loop of every microbatch counts."""
    from loopcoder.data.batch import make_batch
    from loopcoder.train.state import build_state
    from loopcoder.train.step import forward_backward

    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, VOCAB, (2 * rounds, LENGTH + 1), generator=generator)
    ids = torch.arange(2)
    batches = [make_batch(part, ids, ids * 0, eod=3) for part in rows.split(2)]
    grads = {}
    for name, spec, precision in (
        ("exact", "torch", "fp32"),
        ("torch", "torch", "bf16"),
        ("te", "te", "bf16"),
    ):
        model = WIDE | CASES[case] | dict(layer_spec=spec)
        if spec == "torch":
            model["kernels"] = "stock"
        state = build_state(small_config(model, precision), ranks, VOCAB)
        if name == "exact":
            weights = state.network
        else:
            copy_weights(weights, state.network)
        forward_backward(state, batches, 1)
        parts = {plain_name(n): p.main_grad.float() for n, p in state.network.named_parameters()}
        grads[name] = torch.cat([parts[n].flatten() for n in sorted(parts)])
    allowed = 2 * error(grads["torch"], grads["exact"]) + 5e-3
    assert error(grads["te"], grads["exact"]) <= allowed


@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_cross_entropy_over_the_whole_vocabulary(ranks, seed, scale):
    """Loss and gradient of bf16 logits over 76,800 ids against float64, for flat and for peaked
    distributions."""
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    vocab, tokens = 76_800, 64
    config = small_config(WIDE | dict(layer_spec="te"), "bf16")
    mcore = transformer_config(config)
    network = PLTModel(mcore, config.model, vocab, ranks.groups).cuda()
    generator = torch.Generator("cuda").manual_seed(seed)
    logits = torch.randn(tokens, 1, vocab, generator=generator, device="cuda") * scale
    logits = logits.bfloat16().requires_grad_()
    labels = torch.randint(0, vocab, (1, tokens), generator=generator, device="cuda")
    weights = torch.rand(1, tokens, generator=generator, device="cuda")
    exact = logits.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact[:, 0], labels[0], reduction="none")
    (expected * weights[0].double()).sum().backward()
    # the loss may write its gradient over the logits
    loss = network.compute_language_model_loss(labels, logits.clone())
    (loss * weights).sum().backward()
    assert error(loss[0].double(), expected) < 1e-5
    rounding = error(exact.grad.bfloat16().double(), exact.grad)
    assert error(logits.grad.double(), exact.grad) <= 2 * rounding + 1e-4

"""Initial weights: a function of seed and name, the same in every layout."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch

from loopcoder.model import init
from tests.configs import small_config

VOCAB = 128


class Group:
    """A process group, as far as drawing weights asks."""

    def __init__(self, size: int, rank: int):
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


def build(ranks, seed: int, **model):
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    config = small_config(model)
    network = PLTModel(transformer_config(config), config.model, VOCAB, ranks.groups)
    init.initialise(network, config.model, seed)
    return network


def weights(network) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in network.named_parameters()}


def is_drawn(name: str) -> bool:
    return "norm" not in name and "plt_gate" not in name


@pytest.mark.parametrize("model", [{}, {"gate": "query"}, {"num_kv_heads": 4}], ids=str)
@pytest.mark.parametrize("size", [2, 4])
def test_shards_are_cut_from_the_same_whole(ranks, seed, model, size):
    """Put together as megatron splits them, the shards of all tensor-parallel ranks are the
    one-process weights."""
    network = build(ranks, seed, **model)
    for name, parameter in network.named_parameters():
        if not is_drawn(name):
            continue
        whole = init._draw(name, parameter, 0.3, seed, network)
        shards = []
        for rank in range(size):
            like = parameter.detach()
            is_parallel = getattr(parameter, "tensor_model_parallel", False)
            if is_parallel:
                like = like.chunk(size, parameter.partition_dim)[rank].clone()
                like.tensor_model_parallel, like.partition_dim = True, parameter.partition_dim
            shards.append(
                init._draw(name, like, 0.3, seed, SimpleNamespace(tp_group=Group(size, rank)))
            )
            assert shards[-1].shape == like.shape, name
        if not is_parallel:
            joined = shards[0]
            assert all(torch.equal(shard, joined) for shard in shards), name
        elif (
            "linear_fc1" in name
        ):  # each rank has a part of the gate, then one of the up projection
            halves = [shard.chunk(2) for shard in shards]
            joined = torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
        else:
            joined = torch.cat(shards, parameter.partition_dim)
        assert torch.equal(joined, whole), name
    # The matrices that every layout splits were really split.
    split = [n for n, p in network.named_parameters() if getattr(p, "tensor_model_parallel", False)]
    for part in (
        "word_embeddings",
        "linear_qkv",
        "linear_proj",
        "linear_fc1",
        "linear_fc2",
        "output_layer",
    ):
        assert any(part in name for name in split), part


def test_same_seed_same_weights(ranks, seed):
    first, again, other = (weights(build(ranks, s)) for s in (seed, seed, seed + 1))
    for name, w in first.items():
        assert torch.equal(w, again[name])
        assert torch.equal(w, other[name]) != is_drawn(name), name


def test_random_generators_are_neither_read_nor_moved(ranks, seed):
    first = weights(build(ranks, 5))
    network = build(ranks, 6)
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    init.initialise(network, small_config().model, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(w, first[n]) for n, w in weights(network).items())


def test_every_name_has_its_own_weights(ranks, seed):
    """Layers too: two that start equal would stay alike for long."""
    drawn = {n: w for n, w in weights(build(ranks, seed, num_layers=3)).items() if is_drawn(n)}
    assert len(drawn) == 3 * 4 + 2
    first_values = {tuple(w.flatten()[:4].tolist()) for w in drawn.values()}
    assert len(first_values) == len(drawn)


def test_loops_do_not_change_the_weights(ranks, seed):
    """Runs of different R start from the same model, gates apart; so does an untied copy with more
    layers in front."""
    one, three = (weights(build(ranks, seed, num_loops=r)) for r in (1, 3))
    assert {n for n in three if "plt_gate" not in n} == set(one)
    assert all(torch.equal(w, three[n]) for n, w in one.items())


def test_constants(ranks, seed):
    for gate in ("hidden", "query"):
        found = weights(build(ranks, seed, gate=gate))
        norms = [w for n, w in found.items() if "norm" in n]
        gates = [w for n, w in found.items() if "plt_gate" in n and "norm" not in n]
        assert len(norms) == 2 * (3 if gate == "hidden" else 2) + 1
        assert all((w == 1).all() for w in norms)
        assert len(gates) == 2 * 2
        assert all((w == 0).all() for w in gates)


@pytest.mark.parametrize("depth", ["layers", "effective"])
def test_scale(ranks, seed, depth):
    """Normal with init_std; what writes into the residual stream starts smaller by 1/sqrt(2L) or
    1/sqrt(2RL)."""
    shape = dict(hidden_size=64, ffn_hidden_size=96, head_dim=16, num_layers=3, num_loops=2)
    found = weights(build(ranks, seed, init_std=0.03, output_init=depth, **shape))
    residual = 0.03 / math.sqrt(2 * 3 * (2 if depth == "effective" else 1))
    outputs = 0
    for name, w in found.items():
        if not is_drawn(name):
            continue
        is_output = bool(re.search(r"self_attention\.linear_proj|mlp\.linear_fc2", name))
        outputs += is_output
        std = residual if is_output else 0.03
        # Five standard errors of an estimate from n numbers.
        assert w.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * w.numel())), name
        assert abs(w.mean().item()) < 5 * std / math.sqrt(w.numel()), name
    assert outputs == 2 * 3


def test_bf16_weights_are_the_rounded_fp32_ones(ranks, seed):
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    exact = weights(build(ranks, seed))
    config = small_config(precision="bf16")
    network = PLTModel(transformer_config(config), config.model, VOCAB, ranks.groups)
    init.initialise(network, config.model, seed)
    for name, w in weights(network).items():
        assert w.dtype == torch.bfloat16
        assert torch.equal(w, exact[name].bfloat16()), name


def test_names_count_layers_from_the_start_of_the_model():
    """A pipeline stage numbers its layers from 0; the weights must not depend on where the stages
    are cut."""
    stage = SimpleNamespace(layer_numbers=[3, 4])
    network = SimpleNamespace(decoder=stage)
    name = init.global_name("decoder.layers.1.mlp.linear_fc2.weight", network)
    assert name == "decoder.layers.4.mlp.linear_fc2.weight"
    assert (
        init.global_name("embedding.word_embeddings.weight", network)
        == "embedding.word_embeddings.weight"
    )

"""Weight gradients that are added to the main gradient within their GEMM, without apex."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from loopcoder.ops import weight_gradient
from tests.configs import small_config
from tests.model.test_reference import VOCAB, random_starts
from tests.reference import relative
from tests.weights import randomise


@pytest.fixture
def without_apex(monkeypatch: pytest.MonkeyPatch) -> Any:
    from megatron.core.tensor_parallel import layers

    monkeypatch.setattr(layers, "_grad_accum_fusion_available", False)
    monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", None, raising=False)
    return layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("main_dtype", [torch.float32, torch.bfloat16])
def test_it_adds_to_what_is_there(seed, dtype, main_dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, 16, generator=generator).to(dtype)
    d_out = torch.randn(5, 3, 24, generator=generator).to(dtype)
    before = torch.randn(24, 16, generator=generator).to(main_dtype)
    main_grad = before.clone()
    weight_gradient.wgrad_gemm_accum_fp32(x, d_out, main_grad)
    exact = before.double() + torch.einsum("bsi,bso->oi", x.double(), d_out.double())
    bound = 1e-5 if main_dtype is torch.float32 and dtype is torch.float32 else 2e-2
    assert relative(main_grad, exact) < bound


@pytest.mark.parametrize("loops", [1, 3])
def test_a_model_without_apex_has_the_gradients_of_autograd(ranks, seed, without_apex, loops):
    """Every matrix and the head, over several loops and two microbatches."""
    from loopcoder.model.documents import Documents
    from loopcoder.model.plt import PLTModel
    from loopcoder.model.specs import transformer_config

    assert weight_gradient.provide() == "Transformer Engine"
    generator = torch.Generator().manual_seed(seed)
    config = small_config(dict(num_loops=loops))
    plain_config, fused_config = transformer_config(config), transformer_config(config)
    fused_config.gradient_accumulation_fusion = True
    plain, fused = (
        PLTModel(c, config.model, VOCAB, ranks.groups) for c in (plain_config, fused_config)
    )
    assert fused.output_layer.gradient_accumulation_fusion
    randomise(plain, generator)
    fused.load_state_dict(plain.state_dict())
    for p in fused.parameters():
        p.main_grad = torch.zeros_like(p)
    for _ in range(2):
        tokens, labels = torch.randint(0, VOCAB, (2, 2, 24), generator=generator)
        docs = Documents.packed(random_starts(generator, 2, 24))
        for network in (plain, fused):
            network(tokens, docs, labels).mean().backward()
    by_name = dict(fused.named_parameters())
    assert by_name["output_layer.weight"].grad is None  # nothing is left for autograd to add
    for name, p in plain.named_parameters():
        ours = by_name[name]
        found = ours.main_grad if ours.grad is None else ours.grad
        assert relative(found, p.grad.double()) <= 2e-6, name


def test_apex_is_taken_where_it_is(monkeypatch, without_apex):
    monkeypatch.setattr(without_apex, "_grad_accum_fusion_available", True)
    monkeypatch.setattr(without_apex, "fused_weight_gradient_mlp_cuda", object())
    assert weight_gradient.provide() == "apex"
    assert without_apex.fused_weight_gradient_mlp_cuda is not sys.modules[weight_gradient.__name__]


def test_a_layer_that_does_not_fuse_is_no_silent_fallback(ranks):
    from types import SimpleNamespace

    from torch import nn

    from loopcoder.model.reuse import share_over_loops

    layer = nn.Linear(2, 2)
    layer.fuse_wgrad_accumulation = False
    with pytest.raises(RuntimeError, match="does not add its weight gradient"):
        share_over_loops(SimpleNamespace(), nn.ModuleList([layer]), 2)

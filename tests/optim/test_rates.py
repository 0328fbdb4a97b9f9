"""Which parameters learn at which rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from loopcoder.config.compose import compose
from loopcoder.optim.rates import rate_overrides
from loopcoder.optim.schedule import rate_scales, vocabulary_share
from tests.configs import small_config
from tests.optim.test_optimizer import TOKENS, VOCAB, set_gradients


def test_without_fields_everything_learns_at_one_rate():
    config = compose(["model=plt_tiny"])
    assert set(rate_scales(config.model, config.optim).values()) == {1.0}
    assert rate_overrides(config.model, config.optim) == {}


def test_matrices_learn_slower_in_a_wider_and_a_deeper_model_and_the_embedding_does_not():
    config = compose(["model=plt_1b", "model.num_layers=16"])
    model = replace(config.model, residual_scale=0.5)
    optim = replace(config.optim, embedding_lr_scale=40, head_lr_scale=3)
    assert rate_scales(model, optim) == {
        "embedding": 40,
        "matrix": 512 / 2048 / 2,
        "head": 3 * 512 / 2048,
        "output projection": 0.5 * 512 / 2048 / 2,
    }
    assert rate_scales(model, replace(optim, base_num_layers=None))["matrix"] == 512 / 2048


def test_a_deeper_variant_learns_as_a_model_of_so_many_layers():
    one, two = (compose(["model=plt_20m", *more]) for more in ([], ["variant=dense_2x"]))
    rates = [rate_scales(c.model, c.optim)["matrix"] for c in (one, two)]
    assert rates[1] == pytest.approx(rates[0] / 2**0.5)


def test_decay_is_the_same_for_all_matrices():
    config = compose(["model=plt_1b"])
    overrides = rate_overrides(config.model, config.optim).values()
    assert [o["lr_mult"] * o["wd_mult"] for o in overrides] == pytest.approx([1.0, 1.0, 1.0])


def test_the_vocabulary_warms_up_for_as_long_as_it_says():
    optim = replace(compose(["model=plt_tiny"]).optim, vocabulary_warmup_steps=4)
    assert [vocabulary_share(optim, step) for step in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]
    assert vocabulary_share(replace(optim, vocabulary_warmup_steps=0), 1) == 1.0


def test_embedding_and_head_have_groups_of_their_own_where_they_warm_up_longer():
    """Though all learn at one rate in the end; megatron-core tells them apart in a checkpoint."""
    config = compose(["model=plt_tiny"])
    optim = replace(config.optim, vocabulary_warmup_steps=4)
    (override,) = rate_overrides(config.model, optim).values()
    assert override == {"lr_mult": 1.0, "wd_mult": 1.0, "is_decoupled_lr": True}


@pytest.mark.parametrize("longer", [0, 4])
@pytest.mark.parametrize("distributed", [True, False])
def test_every_parameter_moves_at_its_own_rate(ranks, seed, distributed, longer):
    """Several updates against torch's AdamW with a group for each kind, written out by hand."""
    from loopcoder.optim.optimizer import update
    from loopcoder.train.state import build_state

    config = small_config(dict(residual_scale=0.5), distributed_optimizer=distributed)
    fields = dict(base_hidden_size=8, embedding_lr_scale=3.0, head_lr_scale=2.0)
    fields |= dict(base_num_layers=1)
    fields |= dict(vocabulary_warmup_steps=longer)
    optim = replace(config.optim, weight_decay=0.2, clip_grad=0.0, **fields)
    config = replace(config, optim=optim)
    state = build_state(config, ranks, VOCAB)
    copies = {
        name: torch.nn.Parameter(p.detach().clone()) for name, p in state.network.named_parameters()
    }
    narrow = 8 / config.model.hidden_size

    def rate(name: str) -> float:
        if copies[name].dim() == 1:
            return 1.0
        if "word_embeddings" in name:
            return 3.0
        if "output_layer" in name:
            return 2.0 * narrow
        deep = narrow * (1 / config.model.num_layers) ** 0.5
        return deep * (0.5 if "linear_proj" in name or "linear_fc2" in name else 1.0)

    assert len({rate(name) for name in copies}) == 5
    reference = torch.optim.AdamW(
        [{"params": [p], "name": name} for name, p in copies.items()],
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, 4):
        gradients = set_gradients(state, generator)
        update(state.optimizer, optim, 1e-2 / step, TOKENS, vocabulary_share(optim, step))
        for group in reference.param_groups:
            name = group["name"]
            copies[name].grad = gradients[name]
            in_vocabulary = "word_embeddings" in name or "output_layer" in name
            own = rate(name) * (step / longer if longer and in_vocabulary else 1.0)
            group["lr"] = 1e-2 / step * own
            group["weight_decay"] = 0.2 / own if copies[name].dim() > 1 else 0.0
        reference.step()
        for name, p in state.network.named_parameters():
            torch.testing.assert_close(
                p.detach(), copies[name].detach(), rtol=1e-4, atol=1e-5, msg=name
            )

"""Which parameters learn slower or faster than the learning rate: the maximal update
parametrisation for Adam (arXiv 2203.03466), and factors that were folded into weights.

megatron-core's `use_mup` also multiplies logits and changes the scale of attention, which the
released format and our kernels do not have. Its parameter groups are what is used of it.
"""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from torch import Tensor

from loopcoder.config.schema import ModelConfig, OptimConfig
from loopcoder.model.init import is_output_projection
from loopcoder.optim.schedule import rate_scales


def rate_overrides(model: ModelConfig, optim: OptimConfig) -> dict[ParamKey, Any]:
    """Return what megatron-core groups parameters by: one entry per rate other than `optim.lr`.

    Weight decay shrinks every matrix by lr * weight_decay a step, whatever its own rate is, so
    that a width does not change what it comes to over a run.
    """
    return {
        ParamKey(with_name_predicate=_with_scale(scale, model, optim)): {
            "lr_mult": scale,
            "wd_mult": 1 / scale,
        }
        for scale in sorted(set(rate_scales(model, optim).values()) - {1.0})
    }


def _with_scale(scale: float, model: ModelConfig, optim: OptimConfig) -> ParamWithNamePredicate:
    scales = rate_scales(model, optim)

    def has_scale(parameter: Tensor, name: str) -> bool:
        return parameter.dim() > 1 and scales[_kind(name)] == scale

    return ParamWithNamePredicate(name=f"rate times {scale:g}", fn=has_scale)


def _kind(name: str) -> str:
    if "word_embeddings" in name:
        return "embedding"
    if "output_layer" in name:
        return "head"
    return "output projection" if is_output_projection(name) else "matrix"

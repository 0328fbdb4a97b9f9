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

_VOCABULARY = ("embedding", "head")


def rate_overrides(model: ModelConfig, optim: OptimConfig) -> dict[ParamKey, Any]:
    """Return what megatron-core groups parameters by: one entry per rate other than `optim.lr`,
    and those of embedding and head apart (megatron-core's `is_decoupled_lr`) where they warm up for
    longer.

    Weight decay shrinks every matrix by lr * weight_decay a step, whatever its own rate is, so
    that a width does not change what it comes to over a run.
    """
    kinds: dict[tuple[float, bool], list[str]] = {}
    for kind, scale in rate_scales(model, optim).items():
        longer = optim.vocabulary_warmup_steps > 0 and kind in _VOCABULARY
        kinds.setdefault((scale, longer), []).append(kind)
    kinds.pop((1.0, False), None)
    return {
        ParamKey(with_name_predicate=_is_one_of(kinds[key])): {
            "lr_mult": key[0],
            "wd_mult": 1 / key[0],
            **({"is_decoupled_lr": True} if key[1] else {}),
        }
        for key in sorted(kinds)
    }


def _is_one_of(kinds: list[str]) -> ParamWithNamePredicate:
    def is_one(parameter: Tensor, name: str) -> bool:
        return parameter.dim() > 1 and _kind(name) in kinds

    return ParamWithNamePredicate(name=f"rate of {' and '.join(kinds)}", fn=is_one)


def _kind(name: str) -> str:
    if "word_embeddings" in name:
        return "embedding"
    if "output_layer" in name:
        return "head"
    return "output projection" if is_output_projection(name) else "matrix"

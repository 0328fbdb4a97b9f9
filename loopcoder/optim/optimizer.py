"""megatron-core's Adam (sharded over data-parallel ranks), and one checked update of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import (
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from torch import Tensor

from loopcoder.config.schema import ModelConfig, OptimConfig, ParallelConfig
from loopcoder.optim.adam import FusedAdam, use_in_megatron
from loopcoder.optim.rates import rate_overrides


def build_optimizer(
    ddp: Any, model: ModelConfig, optim: OptimConfig, parallel: ParallelConfig, dtype: torch.dtype
) -> Any:
    """Build the optimizer of a DDP-wrapped model; norm weights and biases are exempt from weight
    decay, and `rates` says which parameters learn slower or faster."""
    use_in_megatron()
    wanted = OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    overrides = get_standard_config_overrides(wanted) | rate_overrides(model, optim)
    optimizer = get_megatron_optimizer(wanted, [ddp], config_overrides=overrides)
    for group in optimizer.param_groups:
        # megatron finds a group of a checkpoint by its fields; a run may go on at another rate.
        group.pop("max_lr", None)
        group.pop("min_lr", None)
    return optimizer


def update(
    optimizer: Any,
    optim: OptimConfig,
    lr: float,
    tokens: Tensor,
    vocabulary: float = 1.0,
    *,
    loss: Tensor | None = None,
    tp_size: int = 1,
) -> Tensor:
    """Average and clip the reduced gradients and update the weights, without waiting for the
    device.

    Args:
        tokens: what the gradients, those of a summed loss, are divided by. []
        vocabulary: share of their rate at which embedding and head learn in this step
            (`schedule.vocabulary_share`).
        loss: of the step, over all ranks; one that is not finite refuses the update as well. []
        tp_size: tensor-parallel ranks; all ranks must call this.

    Returns:
        the global norm of the averaged gradient before clipping, on the device [], the same on all
        ranks. Where it or the loss is not finite the weights and moments were left as they are, on
        all ranks: see `train.health`.
    """
    set_rates(optimizer, optim, lr, vocabulary)
    return update_at_rates(optimizer, optim, tokens, loss=loss, tp_size=tp_size)


def adams_of(optimizer: Any) -> list[FusedAdam]:
    """Return the Adams inside megatron-core's optimizer."""
    return [x.optimizer for x in getattr(optimizer, "chained_optimizers", [optimizer])]


def set_rates(optimizer: Any, optim: OptimConfig, lr: float, vocabulary: float = 1.0) -> None:
    """Give the parameter groups the rates of a step; arguments as of `update`."""
    for group in optimizer.param_groups:
        share = vocabulary if group["is_decoupled_lr"] else 1.0
        group["lr"] = lr * group["lr_mult"] * share
        # Loading a checkpoint brings those it was saved with.
        group["betas"], group["eps"] = (optim.beta1, optim.beta2), optim.eps
        # megatron leaves the multiplication to a scheduler that we do not use.
        group["weight_decay"] = optim.weight_decay * group["wd_mult"] / share


def update_at_rates(
    optimizer: Any,
    optim: OptimConfig,
    tokens: Tensor,
    *,
    loss: Tensor | None = None,
    tp_size: int = 1,
) -> Tensor:
    """Do what `update` does once the rates are set: all that happens on the device."""
    optimizer.prepare_grads()
    divisor = tokens.clamp(min=1.0)
    norm = torch.as_tensor(optimizer.get_grad_norm(), device=tokens.device).reshape(()) / divisor
    if tp_size > 1:
        norm = torch.where(_are_copies_finite(optimizer, tokens.device), norm, torch.nan)
    good = norm.isfinite() if loss is None else norm.isfinite() & loss.isfinite()
    refused = (~good).float()
    if optim.clip_grad > 0:
        # As torch.nn.utils.clip_grad_norm_ and megatron have it, to the last constant.
        divisor = divisor * ((norm + 1e-6) / optim.clip_grad).clamp(min=1.0)
    adams = adams_of(optimizer)
    for adam in adams:
        adam.grad_divisor, adam.is_refused = divisor, refused
    # on a GPU it was not measured
    if tokens.device.type == "cpu" and _step_all_weights(optimizer, adams):
        for adam in adams:
            adam.step()
    else:
        optimizer.step_with_ready_grads()
    return norm


def _step_all_weights(optimizer: Any, adams: list[Any]) -> bool:
    """Say whether Adam has the model's own weights, in fp32 and in one shard: then there is nothing
    to copy to the model afterwards, nor to gather."""
    stepped = {
        parameter.data_ptr(): parameter.numel()
        for adam in adams
        for group in adam.param_groups
        for parameter in group["params"]
    }
    chunks = getattr(optimizer, "model_chunks", [])
    weights = [weight for chunk in chunks for weight in chunk.param_to_bucket_group]
    return bool(weights) and all(stepped.get(w.data_ptr()) == w.numel() for w in weights)


def _are_copies_finite(optimizer: Any, device: torch.device) -> Tensor:
    """Say on every rank whether the gradients are finite that the norm leaves out. []

    Each tensor-parallel rank has a copy of what is not split (norms, gates), and the norm counts
    that of the first alone; a bad number in another's would get into that rank's weights.
    """
    copies = [
        parameter.grad
        for inner in getattr(optimizer, "chained_optimizers", [optimizer])
        for parameter in inner.get_parameters()
        if parameter.grad is not None and not param_is_not_tensor_parallel_duplicate(parameter)
    ]
    bad = torch.zeros((), device=device)
    if copies:
        bad = (~torch.stack(torch._foreach_norm(copies)).isfinite().all()).float()
    dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    return bad == 0

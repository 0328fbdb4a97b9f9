"""megatron-core's Adam (sharded over data-parallel ranks), and one checked update of it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from loopcoder.config.schema import OptimConfig, ParallelConfig
from loopcoder.errors import TrainingDiverged
from loopcoder.optim.adam import use_where_no_fused_adam_is_installed


def build_optimizer(
    ddp: Any, optim: OptimConfig, parallel: ParallelConfig, dtype: torch.dtype
) -> Any:
    """Build the optimizer of a DDP-wrapped model; norm weights and biases are exempt from weight
    decay."""
    use_where_no_fused_adam_is_installed()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
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
        ),
        [ddp],
    )
    for group in optimizer.param_groups:
        # megatron finds a group of a checkpoint by its fields; a run may go on at another rate.
        group.pop("max_lr", None)
        group.pop("min_lr", None)
    return optimizer


def update(optimizer: Any, optim: OptimConfig, lr: float, step: int) -> float:
    """Clip the reduced gradients, update the weights, and return the global gradient norm before
    clipping.

    Raises TrainingDiverged before anything is changed if the norm is not finite.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        # Loading a checkpoint brings those it was saved with.
        group["betas"], group["eps"] = (optim.beta1, optim.beta2), optim.eps
        # megatron leaves the multiplication to a scheduler that we do not use.
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]
    optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm())
    if not math.isfinite(grad_norm):
        raise TrainingDiverged(
            f"step {step}: the gradient norm is {grad_norm}\n"
            "    why: an update with it would destroy the weights, so none was made\n"
            "    fix: branch from a checkpoint with a lower rate: "
            f"checkpoint.init_from=CHECKPOINT optim.lr={optim.lr / 2:g}"
        )
    if optim.clip_grad > 0:
        clip = importlib.import_module(
            "megatron.core.optimizer.clip_grads"
        ).clip_grad_by_total_norm_fp32
        for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
            if inner.get_parameters():
                clip(inner.get_parameters(), max_norm=optim.clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()
    return grad_norm

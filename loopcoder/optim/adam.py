"""Adam with the state layout of Transformer Engine's FusedAdam, on torch's own kernels.

megatron-core's distributed optimizer can load a checkpoint only into an Adam that counts steps per
parameter group and keeps `exp_avg` and `exp_avg_sq` per parameter, as the fused Adams of
Transformer Engine and apex do. torch.optim.AdamW counts per parameter. Where Transformer Engine is
absent this class fills the gap, so that checkpoints are the same with and without a GPU; the
arithmetic is torch's.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay; see `torch.optim.AdamW` for the formula."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ):
        if not adam_w_mode or capturable:
            raise NotImplementedError("only decoupled weight decay outside CUDA graphs")
        super().__init__(
            params,
            dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=True),
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            # megatron's distributed optimizer reads and restores this count.
            group["step"] = int(group.get("step", 0)) + 1
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "exp_avg" not in self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            beta1, beta2 = group["betas"]
            adamw(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                # adamw increments the step it is given.
                [torch.tensor(float(group["step"] - 1)) for _ in params],
                foreach=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


def use_where_no_fused_adam_is_installed() -> bool:
    """Make megatron-core use this Adam if neither Transformer Engine nor apex brings one; say
    whether it does."""
    factory: Any = importlib.import_module("megatron.core.optimizer")
    distributed: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    if factory.Adam not in (torch.optim.AdamW, FusedAdam):
        return False
    factory.Adam, factory.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    distributed.Adam, distributed.HAVE_APEX_OR_TE, distributed.USING_APEX_OPTIMIZER = (
        FusedAdam,
        True,
        True,
    )
    return True

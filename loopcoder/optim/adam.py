"""Adam that clips and refuses on the device, with the state layout of the usual fused Adams.

megatron-core scales all gradients in a pass of their own and learns on the host whether they are
finite. Here both travel as tensors into torch's fused kernel: 8 bytes a parameter less to move, and
no step waits for the host. The state is that of Transformer Engine's and apex's Adams (steps
counted by parameter group, `exp_avg` and `exp_avg_sq` by parameter), which is what megatron-core's
distributed optimizer can save and load; checkpoints are the same with and without a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay; see `torch.optim.AdamW` for the formula."""

    grad_divisor: Tensor | None = None
    """Gradients are divided by it on the way; None: by 1. []"""
    is_refused: Tensor | None = None
    """1.0 leaves weights and moments as they are; None: never. []"""

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
            count = torch.full((), float(group["step"]), device=params[0].device)
            torch._fused_adamw_(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                [count] * len(params),
                amsgrad=False,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
                grad_scale=self.grad_divisor,
                found_inf=self.is_refused,
            )


def use_in_megatron() -> None:
    """Make megatron-core build this Adam, whichever other one is installed."""
    factory: Any = importlib.import_module("megatron.core.optimizer")
    distributed: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    factory.Adam, factory.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    distributed.Adam, distributed.HAVE_APEX_OR_TE, distributed.USING_APEX_OPTIMIZER = (
        FusedAdam,
        True,
        True,
    )

"""Adam that clips, and skips bad steps, on the device, with the state layout of the usual fused
Adams.

megatron-core scales all gradients in passes of their own and learns on the host whether they are
finite. Here both travel as tensors into the kernel: 28 bytes per parameter are moved instead of 44,
and no step waits for the host. On a GPU the kernel is ours (`ops/adamw.py`), since torch's writes
the scaled gradients back; on a CPU it is torch's. The state is that of Transformer Engine's and
apex's Adams (steps counted by parameter group, `exp_avg` and `exp_avg_sq` by parameter), which is
what megatron-core's distributed optimizer can save and load; checkpoints are the same with and
without a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, cast

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
            update = self._by_torch if params[0].device.type == "cpu" else self._by_triton
            update(group, params)

    def _by_torch(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            params,
            cast(list[Tensor], [p.grad for p in params]),
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [torch.tensor(float(group["step"]))] * len(params),
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

    def _by_triton(self, group: dict[str, Any], params: list[Tensor]) -> None:
        from loopcoder.ops.adamw import adamw_

        device = params[0].device
        divisor = torch.ones((), device=device) if self.grad_divisor is None else self.grad_divisor
        refused = torch.zeros((), device=device) if self.is_refused is None else self.is_refused
        for p in params:
            state = self.state[p]
            adamw_(
                p,
                p.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                divisor,
                refused,
                step=group["step"],
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
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

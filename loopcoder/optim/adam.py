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

from loopcoder.ops.step_numbers import step_numbers


class FusedAdam(torch.optim.Optimizer):
    """Adam with decoupled weight decay; see `torch.optim.AdamW` for the formula."""

    grad_divisor: Tensor | None = None
    """Gradients are divided by it on the way; None: by 1. []"""
    is_refused: Tensor | None = None
    """1.0 leaves weights and moments as they are; None: never. []"""
    numbers: Tensor | None = None
    """What the kernel reads of each group's rate and count (`step_numbers`), which
    `begin_step` has put on the device; None: `step` counts, and hands it over as numbers of Python.
    [groups, 3], fp32"""

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
            raise NotImplementedError("only decoupled weight decay, and begin_step for CUDA graphs")
        super().__init__(
            params,
            dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=True),
        )

    def begin_step(self) -> None:
        """Count a step, and put on the device what depends on its count and rates; from now on
        `step` counts nothing, so that a CUDA graph of it can be replayed.

        Nothing waits for the device: it may be some steps behind.
        """
        self._count()
        rows = [
            step_numbers(group["step"], group["lr"], group["betas"], group["weight_decay"])
            for group in self.param_groups
        ]
        numbers = torch.tensor(rows, dtype=torch.float32)
        device = next(p.device for group in self.param_groups for p in group["params"])
        if self.numbers is None:
            self.numbers = torch.empty_like(numbers, device=device)
        if device.type == "cuda":  # from a page of its own, which PyTorch keeps until it is read
            numbers = numbers.pin_memory()
        self.numbers.copy_(numbers, non_blocking=True)

    def _count(self) -> None:
        for group in self.param_groups:
            # megatron's distributed optimizer reads and restores this count.
            group["step"] = int(group.get("step", 0)) + 1

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.numbers is None:
            self._count()
        for index, group in enumerate(self.param_groups):
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "exp_avg" not in self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            if params[0].device.type == "cpu":
                self._by_torch(group, params)
            else:
                numbers = None if self.numbers is None else self.numbers[index]
                self._by_triton(group, params, numbers)

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

    def _by_triton(
        self, group: dict[str, Any], params: list[Tensor], numbers: Tensor | None
    ) -> None:
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
                numbers=numbers,
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

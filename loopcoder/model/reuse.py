"""What it takes for several loops to use one weight of a Transformer Engine layer.

- FP8 copies are made once per step. Transformer Engine's own flag for this (`is_first_microbatch`)
  also lets the first microbatch's gradient overwrite the accumulated one; the backward pass runs
  the loops in reverse, so loop 0 would wipe out what later loops had added. So no microbatch is
  ever called the first: copies are dropped when the weights have changed, and made when missing.
- Gradients go straight into `main_grad`, and Transformer Engine hands autograd a placeholder of the
  weight's size, so that hooks fire. With R uses autograd would add up R placeholders: 6 bytes a
  parameter and loop, for nothing. So later loops use an alias of the weight, which has the same
  memory and `main_grad` but gives autograd nothing; loop 0, whose backward pass is the last, uses
  the weight itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

ALIASES = "aliases_of_weights"


def share_over_loops(ddp: Any, layers: nn.ModuleList) -> None:
    """Prepare the layers of a stage, once `ddp` has given their parameters a `main_grad`.

    megatron-core's schedules call `ddp.set_is_first_microbatch` before the first microbatch of a
    step.
    """
    for name, module in layers.named_modules():
        if hasattr(module, "is_first_microbatch"):
            module.is_first_microbatch = False
        if getattr(module, "fuse_wgrad_accumulation", True) is not True:
            raise RuntimeError(f"{name} does not add its weight gradient to the main gradient")
    ddp.set_is_first_microbatch = partial(forget_fp8_copies, layers)
    for layer in layers:
        setattr(layer, ALIASES, {f"{n}.weight": _alias(m) for n, m in _fused_linears(layer)})


def forget_fp8_copies(layers: nn.ModuleList) -> None:
    """Drop all FP8 copies of weights, which have changed.

    Raises RuntimeError where an alias is no longer the weight: later loops would train on a dead
    one, silently.
    """
    for module in layers.modules():
        getattr(module, "_fp8_workspaces", {}).clear()
    for index, layer in enumerate(layers):
        for name, alias in getattr(layer, ALIASES, {}).items():
            weight: Any = layer.get_parameter(name)
            if (alias.data_ptr(), alias.main_grad.data_ptr()) != (
                weight.data_ptr(),
                weight.main_grad.data_ptr(),
            ):
                raise RuntimeError(
                    f"{name} of layer {index} or its main_grad has moved to other memory since "
                    "share_over_loops: later loops would use the old one; call it again"
                )


def in_later_loop(layer: nn.Module) -> Any:
    """Return a function that runs a layer on the aliases of its weights."""
    aliases = getattr(layer, ALIASES, {})
    if not aliases:
        return layer
    return lambda *args: functional_call(layer, aliases, args, tie_weights=False)


def _fused_linears(layer: nn.Module) -> list[tuple[str, Any]]:
    modules = layer.named_modules()
    return [(n, m) for n, m in modules if getattr(m, "fuse_wgrad_accumulation", False)]


def _alias(linear: Any) -> Tensor:
    alias: Any = linear.weight.detach().requires_grad_()
    alias.main_grad = linear.weight.main_grad
    return alias

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
- Other parameters of 16 bits (norms, gates; all of them without Transformer Engine) have an alias
  for each later loop, whose gradient goes into the fp32 `main_grad` at once. Autograd would add the
  loops up in 16 bits, where a pipeline, with a graph for each loop, adds them up in fp32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

ALIASES = "aliases_of_weights"
"""Attribute of a module: for each later loop its aliases, by the name of the parameter."""

_FUSED = ("fuse_wgrad_accumulation", "gradient_accumulation_fusion")
"""Marks of Transformer Engine's and megatron-core's linear layers that add to the main gradient."""


def share_over_loops(ddp: Any, modules: nn.ModuleList, num_loops: int) -> None:
    """Prepare what every loop runs through, once `ddp` has given parameters a `main_grad`.

    megatron-core's schedules call `ddp.set_is_first_microbatch` before the first microbatch of a
    step.

    Args:
        modules: layers and the like, whose gradients come from every loop.
    """
    for name, module in modules.named_modules():
        if hasattr(module, "is_first_microbatch"):
            module.is_first_microbatch = False
        if getattr(module, "fuse_wgrad_accumulation", True) is not True:
            raise RuntimeError(f"{name} does not add its weight gradient to the main gradient")
    ddp.set_is_first_microbatch = partial(forget_fp8_copies, modules)
    for module in modules:
        setattr(module, ALIASES, [_aliases(module, loop) for loop in range(1, num_loops)])


def forget_fp8_copies(modules: nn.ModuleList) -> None:
    """Drop all FP8 copies of weights, which have changed.

    Raises RuntimeError where an alias is no longer the weight: later loops would train on a dead
    one, silently.
    """
    for module in modules.modules():
        getattr(module, "_fp8_workspaces", {}).clear()
    for index, module in enumerate(modules):
        for name, alias in (x for loop in getattr(module, ALIASES, []) for x in loop.items()):
            weight: Any = module.get_parameter(name)
            if (alias.data_ptr(), alias.main_grad.data_ptr()) != (
                weight.data_ptr(),
                weight.main_grad.data_ptr(),
            ):
                raise RuntimeError(
                    f"{name} of module {index} or its main_grad has moved to other memory since "
                    "share_over_loops: later loops would use the old one; call it again"
                )


def in_loop(module: nn.Module, loop_idx: int) -> Any:
    """Return a function that runs a module on the weights, or in later loops on their aliases."""
    aliases = getattr(module, ALIASES, [])
    if loop_idx == 0 or not aliases or not aliases[loop_idx - 1]:
        return module
    return lambda *args: functional_call(module, aliases[loop_idx - 1], args, tie_weights=False)


def _aliases(module: nn.Module, loop_idx: int) -> dict[str, Tensor]:
    """Make the aliases that a module uses in a later loop."""
    fused = [
        f"{name}.weight".removeprefix(".")
        for name, part in module.named_modules()
        if any(getattr(part, mark, False) for mark in _FUSED)
    ]
    aliases = {name: _alias(module.get_parameter(name)) for name in fused}
    for name, parameter in module.named_parameters():
        sum_type = getattr(parameter, "main_grad", parameter).dtype
        # The gate begins in loop 1, which then has to use the parameter itself: DDP waits for it.
        begins_here = loop_idx == 1 and "plt_gate" in name
        if name not in aliases and parameter.dtype != sum_type and not begins_here:
            aliases[name] = alias = _alias(parameter)
            alias.register_post_accumulate_grad_hook(_move_to_main_grad)
    return aliases


def _alias(parameter: Any) -> Any:
    alias: Any = parameter.detach().requires_grad_()
    alias.main_grad = parameter.main_grad
    return alias


def _move_to_main_grad(alias: Any) -> None:
    alias.main_grad.add_(alias.grad)
    alias.grad = None

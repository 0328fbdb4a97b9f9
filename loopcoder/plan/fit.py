"""Whether a run fits into memory: what cannot is refused, what may not is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from loopcoder.backends import Backends
from loopcoder.config.compose import compose, conf_dir
from loopcoder.config.fields import as_override
from loopcoder.config.schema import SHAPE, Config
from loopcoder.errors import InputError, counted
from loopcoder.model.flops import parameters
from loopcoder.plan.device import DeviceMemory, device_memory
from loopcoder.plan.memory import (
    RankMemory,
    largest_rank,
    longest_evaluated,
    planned_vocabulary,
    rank_memory,
)

GIB = 2**30
_SIZES = (*SHAPE, "vocab_size")
"""Fields of a preset on which its memory depends."""
_SHARDED = "parallel.distributed_optimizer=true"
_FIXED, _TOTAL = 0, 1
"""Of what `needed_bytes` returns."""


def needed_bytes(
    config: Config, vocab_size: int, world_size: int, processes: int
) -> tuple[int, int]:
    """Return what one device has to hold: without activations, which is exact, and in all.

    Args:
        processes: of the run on that device; of a machine that holds only some of a run's, their
            mean.
    """
    found = _stages(config, vocab_size, world_size)
    fixed, total = [m.fixed_bytes for m in found], [m.total_bytes for m in found]
    return _on_device(fixed, processes), _on_device(total, processes)


def _stages(config: Config, vocab_size: int, world_size: int) -> list[RankMemory]:
    stages = range(config.parallel.pp)
    return [rank_memory(config, vocab_size, world_size, stage) for stage in stages]


def _on_device(by_stage: list[int], processes: int) -> int:
    if processes == 1:
        return max(by_stage)
    return sum(by_stage) * processes // len(by_stage)


def check_run(config: Config, world_size: int, backends: Backends) -> str | None:
    """Apply `check_memory` to the device of this process, before there is a corpus."""
    device = device_memory(backends, world_size)
    return check_memory(config, planned_vocabulary(config), world_size, device)


class Needs(NamedTuple):
    """How much memory a run needs by the estimate, and what there is."""

    text: str
    is_small: bool
    """It is less than half of what this machine has: memory is no likely reason for its end."""


def needs(config: Config, world_size: int, backends: Backends) -> Needs:
    """Compare the estimate of a run's memory with its device."""
    device = device_memory(backends, world_size)
    processes = 1 if device is None else device.processes
    _, total = needed_bytes(config, planned_vocabulary(config), world_size, processes)
    has = "" if device is None else f", {device.name} has {gib(device.total_bytes)}"
    on_machine = device is not None and device.name == "this machine"
    is_small = on_machine and 2 * total < device.total_bytes  # type: ignore[union-attr]
    return Needs(f"about {gib(total)} by the estimate{has}", is_small)


def check_memory(
    config: Config, vocab_size: int, world_size: int, device: DeviceMemory | None
) -> str | None:
    """Return a warning where the run may not fit, None where by the estimate it does.

    Args:
        config: resolved and checked.
        vocab_size: rows of embedding and head (`plan.memory.planned_vocabulary`).
        device: None: unknown, and nothing is said.

    Raises:
        InputError: weights, gradients and optimizer alone are more than the device has, or what an
            evaluation at `eval.lengths` cannot do without besides.
    """
    if device is None:
        return None
    fixed, total = needed_bytes(config, vocab_size, world_size, device.processes)
    one = device.processes == 1
    who, need = ("one process", "needs") if one else (f"{device.processes} processes", "need")
    if fixed > device.total_bytes:
        largest = largest_rank(config, vocab_size, world_size)
        what = f"{config.model.name} with precision={config.precision.name}"
        raise InputError.of(
            f"{what}: {gib(fixed)} for weights, gradients and optimizer of {who}, "
            f"{device.name} has {gib(device.total_bytes)}",
            f"they cannot be done without ({described(largest)}), activations come on top",
            _fix(config, vocab_size, world_size, device, total),
        )
    evaluation = _Evaluation(config, vocab_size, world_size, device)
    if evaluation.least_bytes > device.total_bytes and evaluation.can_be_less:
        raise InputError.of(
            f"eval.lengths={as_override(config.eval.lengths)}: {gib(evaluation.least_bytes)} for "
            f"an evaluation at {counted(evaluation.longest, 'token')} of {who}, {device.name} has "
            f"{gib(device.total_bytes)}",
            "its logits and masks cannot be done without, nor weights, gradients and optimizer "
            f"beside them ({gib(fixed)})",
            evaluation.fix(device.total_bytes),
        )
    if total <= device.free_bytes:
        return None
    if evaluation.training_bytes <= device.free_bytes:
        return (
            f"warning: an evaluation may not fit: at {counted(evaluation.longest, 'token')} {who} "
            f"{need} about {gib(total)} ({gib(fixed)} for weights, gradients and optimizer, the "
            f"rest is an estimate), {device.name} has {gib(device.free_bytes)} free; "
            f"{evaluation.fix(device.free_bytes)} takes less"
        )
    return (
        f"warning: this may not fit: {who} {need} about {gib(total)} ({gib(fixed)} for weights, "
        f"gradients and optimizer, the rest is an estimate), {device.name} has "
        f"{gib(device.free_bytes)} free; "
        + (
            "a smaller train.micro_batch_size or parallel.recompute=full takes less"
            if fixed <= device.free_bytes
            else "free memory, or take a smaller model"
        )
    )


class _Evaluation:
    """What validation at `eval.lengths` takes of a device, besides what training does."""

    def __init__(
        self, config: Config, vocab_size: int, world_size: int, device: DeviceMemory
    ) -> None:
        self.config, self.device = config, device
        self._sizes = vocab_size, world_size
        self.longest = longest_evaluated(config)
        self.least_bytes = self._least(config)
        plain = self._at(None)
        self.training_bytes = self._total(plain)
        """Of the same run at no further length."""
        self.can_be_less = self._least(plain) < self.least_bytes

    def fix(self, available: int) -> str:
        """Return the lengths that fit by the estimate, or smaller microbatches."""
        lengths = self.config.eval.lengths or []
        kept = [n for n in lengths if self._total(self._at([n])) <= available]
        texts = [f"eval.lengths={as_override(kept or None)}"]
        train = self.config.train
        one = replace(self.config, train=replace(train, micro_batch_size=1))
        if train.micro_batch_size > 1 and self._total(one) <= available:
            texts.append("train.micro_batch_size=1")
        return ", or ".join(texts)

    def _at(self, lengths: list[int] | None) -> Config:
        return replace(self.config, eval=replace(self.config.eval, lengths=lengths))

    def _least(self, config: Config) -> int:
        found = _stages(config, *self._sizes)
        least = [m.fixed_bytes + m.evaluation_floor_bytes for m in found]
        return _on_device(least, self.device.processes)

    def _total(self, config: Config) -> int:
        return needed_bytes(config, *self._sizes, self.device.processes)[_TOTAL]


def described(memory: RankMemory) -> str:
    """Return what the exact part of a rank's memory is made of."""
    return (
        f"{memory.parameters:,} parameters: {gib(memory.weights_bytes)} of weights, "
        f"{gib(memory.gradients_bytes)} of gradients, {gib(memory.optimizer_bytes)} of optimizer "
        "per process"
    )


def gib(size: float) -> str:
    """Return a size in GiB with one decimal; a small one in MiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _fix(config: Config, vocab_size: int, world_size: int, device: DeviceMemory, total: int) -> str:
    """Return the smallest change after which all fits by the estimate, else the exact part."""
    changes = list(_changes(config, world_size, device))
    for part in (_TOTAL, _FIXED):
        for text, changed, processes in changes:
            here = processes if device.processes > 1 else 1
            if needed_bytes(changed, vocab_size, processes, here)[part] <= device.total_bytes:
                return text
    model = _largest_preset(config, vocab_size, world_size, device)
    enough = "a machine" if device.name == "this machine" else "GPUs"
    return f"{f'model={model}' if model else 'a smaller model'}, or {enough} with {gib(total)}"


def _largest_preset(
    config: Config, vocab_size: int, world_size: int, device: DeviceMemory
) -> str | None:
    """Return the name of the largest preset of ours that fits with its recipe."""
    found = {}
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        preset = compose([f"model={path.stem}"])
        changed = replace(
            config,
            model=replace(config.model, **{n: getattr(preset.model, n) for n in _SIZES}),
            data=replace(config.data, seq_length=preset.data.seq_length),
            train=preset.train,
        )
        rows = preset.model.vocab_size or vocab_size
        if needed_bytes(changed, rows, world_size, device.processes)[_TOTAL] <= device.total_bytes:
            found[path.stem] = parameters(preset.model, rows)
    return max(found, key=found.__getitem__, default=None)


def _changes(
    config: Config, world_size: int, device: DeviceMemory
) -> Iterator[tuple[str, Config, int]]:
    """Yield overrides, the config and the processes that they make, the smallest change first."""
    model, parallel = config.model, config.parallel
    on_gpus = device.name != "this machine"
    one_model = parallel.tp * parallel.pp * parallel.cp
    precisions = [("", config.precision)]
    if config.precision.name == "fp32":
        precisions.append(("precision=bf16", replace(config.precision, name="bf16")))
    layouts = [("", parallel)]
    if not parallel.distributed_optimizer and world_size > one_model:
        shards = replace(parallel, distributed_optimizer=True)
        layouts.append((_SHARDED, shards))
    for tp in (2, 4, 8) if on_gpus else ():
        split = (model.num_attention_heads, model.num_kv_heads, model.ffn_hidden_size)
        if tp > parallel.tp and not any(size % tp for size in split):
            shards = replace(parallel, tp=tp, distributed_optimizer=True)
            sharded = "" if parallel.distributed_optimizer else f" {_SHARDED}"
            layouts.append((f"parallel.tp={tp}{sharded}", shards))
    sizes = [world_size * n for n in (1, 2, 4, 8, 16, 32, 64)] if on_gpus else [one_model]
    for size in sizes:
        for layout_text, layout in layouts:
            processes = max(size, layout.tp * layout.pp * layout.cp)
            if processes % (layout.tp * layout.pp * layout.cp):
                continue
            for precision_text, precision in precisions:
                texts = [t for t in (precision_text, layout_text) if t]
                if processes != world_size and on_gpus:
                    texts.append(f"on {counted(processes, 'GPU')}")
                elif processes != world_size:
                    texts.append(f"parallel.nproc_per_node={processes}")
                if texts:
                    changed = replace(config, parallel=layout, precision=precision)
                    yield " ".join(texts), changed, processes

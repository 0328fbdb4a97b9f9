"""Where the points of a sweep run that are trained side by side on one machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from loopcoder.config.schema import ParallelConfig
from loopcoder.errors import InputError, counted


@dataclass
class Places:
    """GPUs of this machine, in shares; without GPUs, places on its processors."""

    gpus: list[str]
    """As CUDA_VISIBLE_DEVICES names them; none: the points run on the processors."""
    at_once: int
    """Points at a time."""
    per_gpu: int = 1
    """Points that share a GPU."""
    _used: dict[str, int] = field(default_factory=dict)
    _running: int = 0

    def take(self, count: int) -> list[str] | None:
        """Take a place for a run on so many GPUs; return those that are used least; None: there is
        no place now."""
        if self._running >= self.at_once:
            return None
        if not self.gpus:
            self._running += 1
            return []
        free = [gpu for gpu in self.gpus if self._used.get(gpu, 0) < self.per_gpu]
        if len(free) < count:
            return None
        chosen = sorted(free, key=lambda gpu: self._used.get(gpu, 0))[:count]
        for gpu in chosen:
            self._used[gpu] = self._used.get(gpu, 0) + 1
        self._running += 1
        return sorted(chosen, key=self.gpus.index)

    def give_back(self, gpus: list[str]) -> None:
        """Give a place back."""
        self._running -= 1
        for gpu in gpus:
            self._used[gpu] -= 1


def gpus_of(parallel: ParallelConfig) -> int:
    """Return how many GPUs a point takes: those of its processes, or the fewest that its layout
    has."""
    return parallel.nproc_per_node or parallel.tp * parallel.pp * parallel.cp


def places(at_once: int | None, per_gpu: int, gpu_count: int, most_gpus: int) -> Places:
    """Return the places of this machine.

    Args:
        at_once: Points at a time; None: as many as the GPUs take, without GPUs one.
        per_gpu: Points that share a GPU.
        gpu_count: GPUs that torch sees.
        most_gpus: That any point takes, by `gpus_of`.

    Raises:
        InputError: a point needs more GPUs than there are, or there are none to share.
    """
    if gpu_count == 0:
        if per_gpu > 1:
            raise InputError.of(
                f"sweep.per_gpu={per_gpu}",
                "there is no GPU here that points could share",
                f"sweep.at_once={per_gpu} for as many at a time on the processors",
            )
        return Places([], at_once or 1)
    if most_gpus > gpu_count:
        raise InputError.of(
            f"a point of {counted(most_gpus, 'process')} on {counted(gpu_count, 'GPU')}",
            "each process has a GPU of its own",
            f"parallel.nproc_per_node={gpu_count}, or less",
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()][:gpu_count]
    if len(names) < gpu_count:
        names = [str(index) for index in range(gpu_count)]
    return Places(names, at_once or gpu_count * per_gpu, per_gpu)

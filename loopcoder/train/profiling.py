"""Traces of single steps: torch's profiler and CUDA memory snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from loopcoder.config.schema import ProfileConfig
from loopcoder.errors import InputError


class StepProfiler:
    """Writes profile/step_N.trace.json (chrome://tracing, Perfetto) and
    profile/step_N.memory.pickle (pytorch.org/memory_viz)."""

    def __init__(self, config: ProfileConfig, run_dir: Path, rank: int):
        self.config, self.folder, self.rank = config, run_dir / "profile", rank
        if config.memory_steps:
            if not torch.cuda.is_available():
                raise InputError.of(
                    f"profile.memory_steps={config.memory_steps} without a GPU",
                    "the snapshot is one of CUDA memory",
                    "profile.memory_steps=[]",
                )
            torch.cuda.memory._record_memory_history(max_entries=200_000)

    def traces(self, step: int) -> bool:
        """Say whether a step is traced, on this rank."""
        return self.rank == 0 and step in self.config.trace_steps

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Run a step, traced if it is one of those asked for (on rank 0)."""
        if self.traces(step):
            with torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
                yield
            self.folder.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(self.folder / f"step_{step:08d}.trace.json"))
        else:
            yield
        if self.rank == 0 and step in self.config.memory_steps:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(self.folder / f"step_{step:08d}.memory.pickle"))

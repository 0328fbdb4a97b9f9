"""What a process that gets no memory says instead of a traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from loopcoder.config.fields import as_override, typed
from loopcoder.config.schema import Config
from loopcoder.errors import OutOfMemory

_TEXTS = ("out of memory", "can't allocate memory", "status_alloc_failed")
"""In errors that PyTorch, CUDA's libraries and Transformer Engine raise as RuntimeError."""


@contextmanager
def named_out_of_memory(what: str, fix: str) -> Iterator[None]:
    """Name what ran out of memory, of a GPU or of the machine, and what takes less.

    What was computed until then is let go, so that there is room to save.

    Raises:
        OutOfMemory: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        said = str(error).partition("\n")[0] or "no memory is free"
        raise OutOfMemory.of(f"{what} ran out of memory", said, fix) from None


def smaller_step(config: Config, run_dir: Path) -> str:
    """Return the overrides with which a step of a run takes less memory."""
    fixes = _without_graphs(config)
    if config.train.micro_batch_size > 1:
        fixes.append("train.micro_batch_size=1")
    if config.parallel.recompute != "full" and config.train.cuda_graphs != "on":
        fixes.append("parallel.recompute=full")
    return _continued(" or ".join(fixes) or "a machine with more memory", run_dir)


def smaller_evaluation(config: Config, length: int, stage: int, run_dir: Path | None) -> str:
    """Return the overrides with which an evaluation takes less memory.

    Args:
        length: of its sequences, in tokens.
        stage: index of the data stage.
        run_dir: of a run that trains; None: a checkpoint is evaluated.
    """
    fixes = [] if run_dir is None else _without_graphs(config)
    if config.train.micro_batch_size > 1:
        fixes.append("train.micro_batch_size=1")
    if length != config.stages[stage].seq_length:
        kept = [n for n in config.eval.lengths or [] if n < length]
        fixes.insert(0, f"eval.lengths={as_override(kept or None)}")
    return _continued(" or ".join(fixes) or "a machine with more memory", run_dir)


def smaller_samples(config: Config, run_dir: Path | None) -> str:
    """Return the overrides with which the continuations of an evaluation take less memory."""
    fixes = ["eval.samples=1"] if config.eval.samples > 1 and not config.eval.sample_prompts else []
    fixes.append("eval.samples=0 eval.sample_prompts=null")
    if run_dir is not None:
        fixes += _without_graphs(config)
    return _continued(" or ".join(fixes), run_dir)


def _without_graphs(config: Config) -> list[str]:
    """Return what gives back the memory that graphs of steps keep, of a run that may have some."""
    return [] if config.train.cuda_graphs == "off" else ["train.cuda_graphs=off"]


def _continued(fix: str, run_dir: Path | None) -> str:
    """Add the folder of the run: with other settings the default would be another one."""
    return fix if run_dir is None else f"{fix}, with {typed(f'run_dir={run_dir}')} to continue"


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an allocation failed, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error).lower() for text in _TEXTS)

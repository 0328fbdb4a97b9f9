"""What a run writes down while it trains, and at which speed its device could."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from loopcoder.backends import Backends
from loopcoder.config.schema import Config
from loopcoder.metrics.sinks import build_sinks
from loopcoder.metrics.throughput import Throughput
from loopcoder.metrics.writer import MetricsWriter
from loopcoder.model.flops import train_flops_per_token


def open_writer(
    config: Config, backends: Backends, run_dir: Path, resume_step: int | None
) -> MetricsWriter:
    """Open the records of a run, with their copies (rank 0)."""
    sinks = build_sinks(
        config.logging,
        backends,
        run_dir=run_dir,
        config=asdict(config),
        max_steps=config.train.max_steps,
        resume_step=resume_step,
    )
    return MetricsWriter(run_dir, sinks=sinks, resume_step=resume_step)


def throughput_of(
    config: Config, stage: int, vocab_size: int, peak_flops: float | None, world_size: int
) -> Throughput:
    """Return what makes tokens and seconds of a data stage into fields of a record."""
    seq_length = config.stages[stage].seq_length
    causal, full = train_flops_per_token(config.model, vocab_size, seq_length)
    return Throughput(causal, full, peak_flops, world_size)

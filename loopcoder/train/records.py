"""What a run writes down, at which speed its device could, and what it says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from loopcoder.backends import Backends
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position
from loopcoder.metrics.goodput import Account
from loopcoder.metrics.plots import plot_run
from loopcoder.metrics.sinks import build_sinks
from loopcoder.metrics.summary import next_command, print_summary
from loopcoder.metrics.throughput import Throughput, peak_flops
from loopcoder.metrics.writer import MetricsWriter
from loopcoder.model.flops import train_flops_per_token
from loopcoder.parallel.mcore import Ranks
from loopcoder.train.provenance import Launch


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
    config: Config,
    backends: Backends,
    ranks: Ranks,
    vocab_size: int,
    stage: int,
    tokens_by_loops: Mapping[int, int],
) -> Throughput:
    """Return what makes tokens and seconds of a data stage into fields of a record, for tokens of
    which so many were trained with each number of loops."""
    name = backends.gpu_name if ranks.device.type == "cuda" else None
    peak = peak_flops(config.hardware, name, config.precision.name)  # type: ignore[arg-type]
    seq_length = config.stages[stage].seq_length
    all_tokens = max(1, sum(tokens_by_loops.values()))
    shares = {loops: tokens / all_tokens for loops, tokens in tokens_by_loops.items()}
    causal, full = train_flops_per_token(
        config.model, vocab_size, seq_length, config.objective, shares
    )
    return Throughput(causal, full, peak, ranks.world_size)


def print_end(
    config: Config,
    backends: Backends,
    run_dir: Path,
    launch: Launch,
    position: Position,
    val_loss: float | None,
    unigram_entropy: float | None,
    account: Account,
) -> None:
    """Draw the curves of a run that is done, and print what came out (rank 0)."""
    plots = config.logging.plots and backends.has("matplotlib")
    # beside a branch a sweep from scratch says nothing
    is_beside = launch.is_point or config.checkpoint.init_from
    print_summary(
        run_dir,
        steps=position.step,
        tokens=position.tokens,
        advice=None if is_beside else next_command(config, launch.overrides),
        val_loss=val_loss,
        unigram_entropy=unigram_entropy,
        account=account,
        plots=plot_run(run_dir) if plots else [],
    )

"""What a finished run says on the screen: how far it came, how good it is, where things are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loopcoder.metrics.writer import METRICS_FILE, read_metrics


def print_summary(
    run_dir: Path,
    *,
    steps: int,
    tokens: int,
    val_loss: float | None,
    unigram_entropy: float | None,
    plots: Sequence[Path],
) -> None:
    """Print what came out.

    The validation loss is compared with the unigram entropy of the same tokens (both in nats per
    token); None leaves the comparison out.
    """
    print(f"\ndone: {steps} steps, {tokens:,} tokens")
    if val_loss is not None and unigram_entropy is not None:
        side = "under" if val_loss <= unigram_entropy else "over"
        print(
            f"validation loss {val_loss:.3f} nats per token, "
            f"{abs(unigram_entropy - val_loss):.2f} {side} the unigram entropy "
            f"{unigram_entropy:.2f}"
        )
    for path in [*plots, run_dir / METRICS_FILE, run_dir / "checkpoints"]:
        print(f"  {path}")


def print_finished(run_dir: Path, *, steps: int, max_steps: int) -> None:
    """Say of a run that had nothing to do what it came to, and how to train it further."""
    path = run_dir / METRICS_FILE
    lines = read_metrics(path) if path.exists() else []
    losses = [line["val/loss"] for line in lines if "val/loss" in line]
    loss = f", validation loss {losses[-1]:.3f} nats per token" if losses else ""
    print(f"\nalready finished: {steps} steps{loss}")
    if steps > max_steps:
        print(f"  train.max_steps={max_steps} is less than what was trained: nothing was changed")
    print(f"  {run_dir}")
    print(f"more: the same command with run_dir={run_dir} train.max_steps={2 * steps}")

"""What a finished run says on the screen: how far it came, how good it is, where things are."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from loopcoder.config.schema import Config
from loopcoder.errors import counted
from loopcoder.metrics.goodput import Account
from loopcoder.metrics.writer import METRICS_FILE, read_metrics

_OF_ONE_START = (
    "model.num_loops=",
    "run_dir=",
    "name=",
    "checkpoint.resume=",
    "checkpoint.init_",
    "checkpoint.step=",
    "checkpoint.store",
    "data.rebuild=",
    "profile.",
)


def print_summary(
    run_dir: Path,
    *,
    steps: int,
    tokens: int,
    advice: str | None,
    val_loss: float | None,
    unigram_entropy: float | None,
    account: Account,
    plots: Sequence[Path],
) -> None:
    """Print what came out and, as `advice`, what to try next.

    The validation loss is compared with the unigram entropy of the corpus (both in nats per token,
    their domains weighted by the mixture); None leaves the comparison out.
    """
    print(f"\ndone: {counted(steps, 'step')}, {counted(tokens, 'token')}")
    if val_loss is not None and unigram_entropy is not None:
        side = "under" if val_loss <= unigram_entropy else "over"
        print(
            f"validation loss {val_loss:.3f} nats per token, "
            f"{abs(unigram_entropy - val_loss):.2f} {side} the unigram entropy "
            f"{unigram_entropy:.2f}"
        )
    print(f"time: {account}")
    for path in [*plots, run_dir / METRICS_FILE, run_dir / "checkpoints"]:
        print(f"  {path}")
    if advice is not None:
        print(f"next: {advice}")


def next_command(config: Config, overrides: Sequence[str]) -> str:
    """Return the command that trains one loop more beside what was asked for, without what belongs
    to one start or to one folder."""
    kept = [o for o in overrides if not o.lstrip("+~").startswith(_OF_ONE_START)]
    loops = config.model.num_loops
    sweep = ["loopcoder", "train", "-m", *kept, f"model.num_loops={loops},{loops + 1}"]
    return f"{shlex.join(sweep)}   (what does another loop bring?)"


def print_finished(run_dir: Path, step: int, max_steps: int, planned: int) -> None:
    """Say that a run has nothing left to train, and how good it was.

    Args:
        step: Where it stands.
        max_steps: The steps that it is asked for, no more than it has.
        planned: The steps that it was to have: one that was stopped before is not finished.
    """
    file = run_dir / METRICS_FILE
    lines = read_metrics(file) if file.exists() else []
    loss = next((line["val/loss"] for line in reversed(lines) if "val/loss" in line), None)
    val = "" if loss is None else f", validation loss {loss:.4f}"
    past = "" if step == max_steps else f", which is past train.max_steps={max_steps}"
    if step < planned:
        stands = f"nothing to train: the run stands at step {step:,} of {planned:,}"
    else:
        stands = f"already finished: {counted(step, 'step')}"
    print(f"{stands}{past}{val} ({run_dir})")
    more = planned if step < planned else 2 * step
    print(f"more: the same command with run_dir={run_dir} train.max_steps={more}")

"""What a finished run says on the screen: how far it came, how good it is, where things are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loopcoder.metrics.writer import METRICS_FILE


def print_summary(
    run_dir: Path,
    *,
    steps: int,
    tokens: int,
    num_loops: int,
    val_loss: float | None,
    unigram_entropy: float | None,
    plots: Sequence[Path],
) -> None:
    """Print what came out and what to try next.

    The validation loss is compared with the unigram entropy of the corpus (both in nats per token,
    their domains weighted by the mixture); None leaves the comparison out.
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
    print(
        f"next: loopcoder train -m model.num_loops={num_loops},{num_loops + 1}"
        "   (what does another loop bring?)"
    )

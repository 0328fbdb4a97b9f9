"""Run folders as training leaves them, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loopcoder.checkpoint import format as layout
from loopcoder.config.compose import compose, save_config
from tests.checkpoint.states import state_at


def run_dir(
    folder: Path, *overrides: str, losses: int = 0, saved: int | None = None, corpus: str = ""
) -> Path:
    """Write a run of 10 steps with a line of metrics for each of its steps done.

    Args:
        losses: Steps done; the last has a validation loss.
        saved: Step of a checkpoint.
        corpus: Fingerprint of its corpus.
    """
    folder.mkdir(parents=True)
    config = compose(["train.max_steps=10", *overrides])
    save_config(config, folder / "config.yaml")
    lines: list[dict[str, Any]] = [
        {"step": i, "loss": 5 - i / 10, "tokens": 32 * i} for i in range(1, losses + 1)
    ]
    if lines:
        lines[-1] |= {"val/loss": 4.5 - config.model.num_loops / 100, "tokens_per_s": 9.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if corpus:
        (folder / "corpus.json").write_text(json.dumps({"dir": "/c", "fingerprint": corpus}))
    if saved is not None:
        checkpoint(folder, saved, corpus)
    return folder


def checkpoint(folder: Path, step: int, corpus: str = "", **content: Any) -> None:
    """Write a complete checkpoint without weights; `content` replaces parts of its state."""
    path = layout.step_folder(folder, step)
    path.mkdir(parents=True)
    state = state_at(step, corpus=corpus).to_json() | content
    (path / "state.json").write_text(json.dumps(state))
    (path / "weights.distcp").write_bytes(bytes(5000))
    (path / "manifest.json").write_text('{"files": {}}')
    if (folder / "config.yaml").exists():
        (path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())

"""Points of a made-up sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from loopcoder.metrics.sweep_rows import SweptRun
from tests.configs import small_config

VARIANTS: dict[str, dict[str, Any]] = {
    "loops_1": {"num_loops": 1},
    "loops_2": {"num_loops": 2},
    "loops_3": {"num_loops": 3},
    "no_shift": {"num_loops": 2, "shift": False},
    "dense_2x": {"num_loops": 1, "num_layers": 4},
}


def swept_run(
    run_dir: Path, losses: list[float], *, point: str = "run", seed: int = 1, **model: Any
) -> SweptRun:
    """Write a run with one evaluation per loss, code 0.1 above text; without any, nothing."""
    if losses:
        run_dir.mkdir(parents=True)
        lines = [
            {"step": i, "tokens": 100 * i, "loss": loss, "tokens_per_s": 50.0, "val/loss": loss}
            | {"val/loss/code": loss + 0.05, "val/loss/text": loss - 0.05}
            for i, loss in enumerate(losses, 1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run_dir / "metrics.jsonl").write_text(text)
    config = replace(small_config(model=model), seed=seed)
    code, flops = 0 if losses else None, 1e9 * config.model.num_loops
    return SweptRun(f"seed={seed} {point}", point, config, run_dir, code, flops)


def loop_sweep(folder: Path, seeds: tuple[int, ...] = (1, 2), **last: float) -> list[SweptRun]:
    """Return runs of VARIANTS with these last losses, each higher by a hundredth of its seed."""
    return [
        swept_run(
            folder / f"{name}-{seed}",
            [4.0, loss + seed / 100],
            point=f"variant={name}",
            seed=seed,
            **VARIANTS[name],
        )
        for seed in seeds
        for name, loss in last.items()
    ]

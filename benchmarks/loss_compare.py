"""Train the tiny preset at another commit and here; losses and gradient norms must be equal.

    make loss-compare BASE=main ARGS="model.num_loops=3"

Both train on one corpus, the one that this tree builds, so that only the training code differs.
Exit codes: 0 equal, 1 different or failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measured import REPOSITORY, UNSAVED

STEPS = 20


def run(tree: Path, *arguments: str) -> str:
    """Run `loopcoder` from the sources in `tree`; return what it printed."""
    environ = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "loopcoder", *arguments]
    done = subprocess.run(
        command, cwd=tree, env=environ, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode} in {tree}")
    return done.stdout


def train(tree: Path, corpus: str, run_dir: Path, overrides: list[str]) -> list[dict[str, float]]:
    """Train in `tree`; return step, loss and gradient norm of each step."""
    steps = [] if any(o.startswith("train.max_steps=") for o in overrides) else [STEPS]
    fixed = ["data.reader=megatron"] if _has_readers(tree) else []  # the first, which all have
    fixed = [o for o in fixed if not any(p.startswith("data.reader=") for p in overrides)]
    fixed += [f"train.max_steps={n}" for n in steps] + [f'run_dir="{run_dir}"']
    run(tree, "train", "data=corpus", f'path="{corpus}"', *UNSAVED, *overrides, *fixed)
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: line[k] for k in ("step", "loss", "grad_norm")} for line in lines if "loss" in line]


def _has_readers(tree: Path) -> bool:
    """Say whether the code in `tree` lets a run choose what reads its data."""
    fields = tree / "loopcoder" / "config" / "data.py"  # which the oldest have elsewhere
    return fields.is_file() and "reader:" in fields.read_text()


def main(base: str, overrides: list[str]) -> int:
    """Compare this tree with the commit `base`; return the exit code."""
    corpus = run(REPOSITORY, "data").splitlines()[-1]
    with tempfile.TemporaryDirectory(prefix="loss-compare-") as folder:
        tree = Path(folder, "base")
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), base], check=True)
        try:
            theirs = train(tree, corpus, Path(folder, "run_base"), overrides)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
        ours = train(REPOSITORY, corpus, Path(folder, "run_here"), overrides)
    for a, b in zip(theirs, ours, strict=False):
        if a != b:
            print(f"different from step {b['step']} on\n  {base}: {a}\n  here: {b}")
            return 1
    if len(theirs) != len(ours) or not ours:
        print(f"{base} has {len(theirs)} steps, this tree {len(ours)}")
        return 1
    print(f"{len(ours)} steps are equal bit for bit; last loss {ours[-1]['loss']}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: make loss-compare BASE=rev")
    sys.exit(main(sys.argv[1], sys.argv[2:]))

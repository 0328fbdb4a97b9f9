"""Exported folders in several versions of transformers: logits, generation, training, files.

The version that is installed is always tried. `make test-hf` installs others beside it and names
them in LOOPCODER_TEST_TRANSFORMERS, folders for PYTHONPATH with a colon between.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loopcoder.hf.export import export
from loopcoder.model.documents import Documents
from tests.conftest import fresh_seed
from tests.hf import in_transformers as script
from tests.hf.folders import VOCAB, Made, Twice, exact_logits, made
from tests.parts import one_of
from tests.reference import errors

pytest.importorskip("transformers")

MODELS: dict[str, dict[str, Any]] = {
    "r3": dict(num_loops=3),
    "r1": dict(num_loops=1),
    "r2 query gate, a and b null": dict(gate="query", emb_scale=None, hidden_scale=None),
    "r4, a window of 64": dict(num_loops=4, window=64, num_kv_heads=1),
    "r2 without a window, eight layers": dict(window=0, num_layers=8),
    "r3 with K/V of each loop": dict(num_loops=3, kv_sharing="own"),
    "r2 without a shift": dict(shift=False),
    "r3 query gate, norm at the end": dict(num_loops=3, gate="query", norm_per_loop=False),
}
OTHERS = [p for p in os.environ.get("LOOPCODER_TEST_TRANSFORMERS", "").split(":") if p]
VERSIONS = {"installed": ""} | {Path(path).name: path for path in OTHERS}
LENGTH = 330


@pytest.mark.hf
@pytest.mark.dist
def test_the_installed_version_computes_what_was_trained(ranks: Any, tmp_path: Path) -> None:
    seed = fresh_seed()
    model = dict(num_loops=2 + seed % 3, gate=("hidden", "query")[seed // 3 % 2])
    check(made(tmp_path, seed, **model), tmp_path, seed, "", steps=12, length=80)


@pytest.mark.hf
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", one_of(list(MODELS)))
def test_every_version_computes_what_was_trained(
    ranks: Any, tmp_path: Path, name: str, version: str
) -> None:
    seed = fresh_seed()
    check(made(tmp_path, seed, **MODELS[name]), tmp_path, seed, VERSIONS[version], steps=12)


@pytest.mark.hf
@pytest.mark.parametrize("version", one_of(list(VERSIONS)))
def test_200_steps_equal_the_full_forward_pass(ranks: Any, tmp_path: Path, version: str) -> None:
    seed = fresh_seed()
    model = dict(num_loops=2 + seed % 2, window=(6, 64)[seed % 2])
    check(made(tmp_path, seed, **model), tmp_path, seed, VERSIONS[version], steps=200)


def check(
    case: Made, folder: Path, seed: int, version: str, steps: int, length: int = LENGTH
) -> None:
    """Export, and compare what transformers makes of the folder with exact arithmetic and with the
    model that was saved."""
    generator = torch.Generator().manual_seed(seed)
    # `generate` would take 0 for padding
    tokens = torch.randint(1, VOCAB, (2, LENGTH), generator=generator)
    start = torch.zeros_like(tokens)
    for row in start:
        for border in torch.randint(1, length, (3,), generator=generator).sort().values:
            row[border:] = border
    packed = Documents.packed(start)
    inputs, output = folder / "inputs.pt", folder / "logits.pt"
    torch.save({"tokens": tokens, "position_ids": packed.position_ids}, inputs)
    # transformers 4.57 knows modules by the name of their folder
    out = export(case.checkpoint, folder / f"export_{seed}", shard_bytes=60_000).folder
    run(out, inputs, output, folder / "home", version, steps)
    found: dict[str, Tensor] = torch.load(output, weights_only=True)
    whole = torch.zeros_like(start)
    for kind, begins in (("whole", whole), ("packed", start)):
        parts = tokens[:, :length], begins[:, :length]
        for dtype in (torch.float32, torch.bfloat16):
            weights = {n: w.to(dtype).double() for n, w in case.weights.items()}
            rounding = Twice(weights, lambda w, p=parts: exact_logits(w, case, *p), seed, dtype)
            for implementation in script.IMPLEMENTATIONS:
                name = f"{implementation} {str(dtype).removeprefix('torch.')} {kind}"
                rows = {f"row {i}": x[:length] for i, x in enumerate(found[name])}
                assert not rounding.beyond(errors(rows, rounding.exact)), (seed, name)
            if dtype == torch.float32:
                docs = Documents.packed(parts[1])
                with torch.no_grad():
                    ours = case.state.network(parts[0], docs, None).transpose(0, 1)
                rows = {f"row {i}": x for i, x in enumerate(ours)}
                assert not rounding.beyond(errors(rows, rounding.exact)), seed


def run(folder: Path, inputs: Path, output: Path, home: Path, version: str, steps: int) -> None:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PYTHONPATH": version, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, script.__file__, folder, inputs, output, str(steps)]
    done = subprocess.run(
        [str(x) for x in command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agrees" in done.stdout

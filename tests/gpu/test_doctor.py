"""What the doctor measures on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from loopcoder.backends import detect
from loopcoder.config.schema import HardwareConfig
from loopcoder.doctor import measures
from loopcoder.doctor.findings import Seen

pytestmark = pytest.mark.gpu


def test_products_in_bf16_and_fp8() -> None:
    seen, device = Seen(), torch.device("cuda", 0)
    measures.bf16_product(seen, device, HardwareConfig(name="auto"), side=8192)
    assert seen.findings[0].value is not None and seen.findings[0].value > 1
    if not detect().has_te:
        pytest.skip("Transformer Engine is not installed")
    measures.fp8_product(seen, device, side=4096)
    assert seen.findings[1].level in ("ok", "note"), seen.findings[1]


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_verb(tmp_path: Path, gpus: int) -> None:
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs")
    began = time.monotonic()
    asked = [f"parallel.nproc_per_node={gpus}", "train.micro_batch_size=1"]
    done = subprocess.run(
        [sys.executable, "-m", "loopcoder", "doctor", "--json", *asked],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - began < 60
    told = json.loads(done.stdout)
    found = {f["check"]: f for f in told["nodes"][0]["findings"]}
    assert {f"GPU {n} bf16" for n in range(gpus)} <= found.keys(), done.stderr
    assert ("all-reduce inside" in found) == (gpus > 1)

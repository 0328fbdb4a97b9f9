"""The Triton kernel against torch's AdamW; on a CPU in Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
import sys
import torch

sys.path.insert(0, ".")
from loopcoder.ops.adamw import adamw_
from loopcoder.ops.step_numbers import step_numbers

device = sys.argv[1]
generator = torch.Generator().manual_seed(int(sys.argv[2]))
for shape in ((1,), (7, 13), (2048,), (3, 2049)):
    draw = lambda: torch.randn(shape, generator=generator).to(device)
    p, m, v = draw(), torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    q = torch.nn.Parameter(p.clone())
    options = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    torchs = torch.optim.AdamW([q], **options)
    divisor, zero, one = (torch.tensor(x, device=device) for x in (3.0, 0.0, 1.0))
    for step in range(1, 5):
        g = draw()
        q.grad = g / 3.0
        torchs.step()
        adamw_(p, g, m, v, divisor, zero, step=step, **options)
        torch.testing.assert_close(p, q.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(v, torchs.state[q]["exp_avg_sq"], rtol=1e-5, atol=1e-9)
        at_rates = options | dict(lr=1e-2 / step)
        ours, theirs = ([x.clone() for x in (p, m, v)] for _ in range(2))
        adamw_(ours[0], g, *ours[1:], divisor, zero, step=step + 1, **at_rates)
        decay = options["weight_decay"]
        row = step_numbers(step + 1, at_rates["lr"], options["betas"], decay)
        numbers = torch.tensor(row, dtype=torch.float32, device=device)
        # those that it reads count, and no others
        wrong = options | dict(lr=7.0, weight_decay=3.0)
        adamw_(theirs[0], g, *theirs[1:], divisor, zero, step=9, numbers=numbers, **wrong)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    before = [x.clone() for x in (p, m, v)]
    adamw_(p, draw() * float("nan"), m, v, divisor, one, step=5, **options)
    assert all(torch.equal(a, b) for a, b in zip((p, m, v), before))
try:
    adamw_(p.bfloat16(), g, m, v, divisor, zero, step=1, **options)
except ValueError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_equals_torch(device, seed, monkeypatch):
    if device == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when a kernel is defined
    command = [sys.executable, "-c", CHECK, device, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "contiguous fp32" in done.stdout

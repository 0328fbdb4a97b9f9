"""Which loops of two models are compared, and what is printed of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loopcoder import differences
from loopcoder.cli import main as cli
from tests.conftest import fresh_seed


@pytest.mark.parametrize("loops", [(3, 2), (1, 3), (2, 2)])
def test_the_loops_that_both_have_and_the_last_of_each(
    loops: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = fresh_seed()
    print(f"LOOPCODER_TEST_SEED={seed}")
    drawn = torch.Generator().manual_seed(seed)
    sides = [
        differences.Side(f"r{num}-{i}", num, torch.randn(num, 4, 7, generator=drawn), {"w": i})
        for i, num in enumerate(loops)
    ]
    found = {d.loop_idx: d for d in differences.compare(*sides)}
    both = [(i, i) for i in range(min(loops))]
    assert [*found] == list(dict.fromkeys([*both, (loops[0] - 1, loops[1] - 1)]))
    for (i, j), d in found.items():
        x, y = sides[0].logits[i], sides[1].logits[j]
        assert abs(d.values[0] - d.values[1]) == pytest.approx(float((x - y).abs().max()))

    left: list[Any] = [*sides]
    monkeypatch.setattr(differences, "side", lambda *_: (left.pop(0), [1, 2]))
    capsys.readouterr()
    assert cli.main(["compare", "checkpoint=A", "checkpoint=B", "text=x"]) == 1
    out = capsys.readouterr().out
    assert ("R differs" in out) == (loops[0] != loops[1])
    assert (f"last loops, {loops[0] - 1} and {loops[1] - 1}: " in out) == (loops[0] != loops[1])
    assert out.count("\nloop ") == min(loops)

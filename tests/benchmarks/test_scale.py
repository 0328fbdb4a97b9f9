"""What the scripts for several GPUs make of the records of a run."""

from __future__ import annotations

import argparse
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loopcoder.backends import detect
from loopcoder.config.check import check
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve


def stamped(seconds: float, **fields: Any) -> dict[str, Any]:
    """A record of a run, at so many seconds since its start."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return {"time": at.isoformat(timespec="milliseconds")} | fields


def test_a_stall_is_what_the_steps_beside_a_save_take_beyond_others(seed: int) -> None:
    """Most steps are beside one, so that they must not count as what a step takes."""
    from restart import stalls

    draw = random.Random(seed)
    step_s, stall_s, beside = draw.uniform(0.5, 3), draw.uniform(0.2, 0.6), 4
    first = draw.randrange(1, 50)
    saves = range(first + 5, first + 29, 6)
    slow = {save + 1 + i for save in saves for i in range(beside)}
    records, now = [], 0.0
    for step in range(first, first + 30):
        now += step_s + (stall_s / beside if step in slow else 0)
        now += 5.0 if step == first + 1 else 0  # it compiles
        records.append(stamped(now, step=step, loss=1.0))
    at = {r["step"]: datetime.fromisoformat(r["time"]) for r in records}
    half = timedelta(seconds=step_s / 2)  # the last of the steps beside it was trained then
    events = [
        {"step": s, "time": (at[s + beside] - half).isoformat(), "bytes": 1, "seconds": 1.0}
        for s in saves
    ]
    found = stalls(records, events)
    assert [save["step"] for save in found] == [*saves]
    for save in found:
        assert save["step_s"] == pytest.approx(step_s, abs=0.002)
        assert save["stall_s"] == pytest.approx(stall_s, abs=0.002 * (beside + 1))


def test_kept_rows_are_found_again_and_a_torn_line_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measured
    from measured import Kept

    monkeypatch.setattr(measured, "hardware", lambda: "8 x GPU")
    path = tmp_path / "new" / "rows.jsonl"
    row = Kept(path).add({"layout": "dp4", "precision": "bf16", "step_time_s": 1.5})
    assert row["commit"] and row["hardware"] == "8 x GPU"
    with path.open("a") as file:
        file.write('{"layout": "tp4_sp", "prec')
    kept = Kept(path)
    assert kept.find(layout="dp4", precision="bf16") == row
    assert kept.find(layout="dp4", precision="fp8_tensorwise") is None
    assert kept.find(layout="tp4_sp") is None
    kept.add({"layout": "tp4_sp"})
    assert [r["layout"] for r in Kept(path).records] == ["dp4", "tp4_sp"]
    path.write_text('{"layout": "mine"}')  # without the end of its line
    kept = Kept(path)
    assert path.read_text() == '{"layout": "mine"}'
    kept.add({"layout": "dp4"})
    assert [r["layout"] for r in Kept(path).records] == ["mine", "dp4"]


def test_a_layout_is_measured_after_its_first_steps(seed: int) -> None:
    from train_layouts import RECORDED, WARMUP_STEPS, measured, row

    draw = random.Random(seed)
    first = [dict.fromkeys(RECORDED, 1e9) | {"memory_bytes": 2**30, "loss": 9.0}] * WARMUP_STEPS
    values = [draw.uniform(1, 2) for _ in range(5)]
    rest = [dict.fromkeys(RECORDED, v) | {"memory_bytes": 2**31, "loss": v} for v in values]
    found = measured(first + rest)
    assert all(found[name] == sorted(values)[2] for name in RECORDED)
    assert found["memory_bytes"] == 2**31 and found["losses"] == [9.0, values[-1]]
    assert "2.0 GiB" in row(found | {"layout": "dp4", "precision": "bf16"})


def test_layouts_are_those_of_their_gpus() -> None:
    """Each is one that the 7B model can be trained in, on all GPUs."""
    from measured import SEVEN_B
    from train_layouts import LAYOUTS

    for gpus, layouts in LAYOUTS.items():
        for name, overrides in layouts.items():
            asked = [*SEVEN_B, *overrides, f"train.global_batch_size={2 * gpus}"]
            config = resolve(compose([*asked, "train.micro_batch_size=1"]), detect())
            check(config, gpus, detect())
            parallel = config.parallel
            sizes = {"tp": parallel.tp, "pp": parallel.pp}
            sizes["dp"] = gpus // (parallel.tp * parallel.pp)
            said = {kind: size for kind, size in sizes.items() if f"{kind}{size}" in name}
            assert said == {kind: size for kind, size in sizes.items() if size > 1}, name


def test_the_bubble_is_what_shrinks_with_microbatches(seed: int) -> None:
    from pipeline_bubble import fitted, table

    draw = random.Random(seed)
    stages, loops, rest = 4, draw.randrange(1, 4), draw.uniform(0.01, 0.1)
    bubble = (stages - 1) / loops * draw.uniform(0.9, 1.1)
    found = {m: (1.0, bubble / m + rest) for m in (4, 8, 16, 32)}
    result = fitted(found, stages, loops, 1)
    assert result["bubble"] == pytest.approx(bubble) and result["rest"] == pytest.approx(rest)
    assert result["theory"] == pytest.approx(3 / loops)
    ratio = f"ratio {bubble * loops / 3:.3f};"
    assert ratio in table(result | {"hardware": "CPU", "layers": 8})


@pytest.fixture
def sweeps(tmp_path: Path) -> tuple[Path, Path]:
    """A sweep, and the same killed after step 3 and continued from step 2."""
    for kind in ("whole", "killed"):
        for point in range(4):
            run_dir = tmp_path / kind / f"0{point}"
            run_dir.mkdir(parents=True)
            steps = [{"step": s, "loss": point + 1 / s} for s in (1, 2, 3, 3, 4)]
            (run_dir / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
            (run_dir / "events.jsonl").write_text('{"kind": "run_continues", "step": 2}\n')
    return tmp_path / "whole", tmp_path / "killed"


def states(gpus: str = "0123", saved: int = 2) -> list[dict[str, Any]]:
    return [
        {"point": f"0{i}", "gpus": gpu, "step": 3, "saved": saved} for i, gpu in enumerate(gpus)
    ]


def test_a_continued_sweep_is_the_undisturbed_one(sweeps: tuple[Path, Path]) -> None:
    from sweep_killed import compared

    assert compared(*sweeps, states(), on_gpus=True)["faults"] == []
    assert compared(*sweeps, states("    "), on_gpus=False)["faults"] == []
    assert "had the GPUs" in compared(*sweeps, states("0122"), on_gpus=True)["faults"][0]
    assert len(compared(*sweeps, states(saved=3), on_gpus=True)["faults"]) == 4
    nowhere = sweeps[0].with_name("nowhere")
    assert len(compared(nowhere, nowhere, states(), on_gpus=True)["faults"]) == 2
    five = [*states(), {"point": "04", "gpus": "4", "step": 3, "saved": 2}]
    assert "['04']" in compared(*sweeps, five, on_gpus=True)["faults"][0]
    with (sweeps[1] / "01" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.5}\n')
    assert compared(*sweeps, states(), on_gpus=True)["faults"] == ["01: 1 of 4 losses differ"]


def test_all_kills_and_a_look_at_saves_are_the_end() -> None:
    from restart import is_done, table

    asked = argparse.Namespace(kills=2)
    save = {"bytes": 4e9, "seconds": 2.0, "stall_s": 0.03, "step_s": 1.5}
    found: list[dict[str, Any]] = [{"interval": 20, "saves": [save]}]
    for number, (seconds, lost) in enumerate(((20.0, 4), (40.0, 8))):
        assert not is_done(asked, found)
        timed = {"ended_s": 1.0, "restart_s": seconds, "steps_lost": lost}
        found.append({"kill": number, "rank": 1, "gpus": 4, "step": 30} | timed)
    assert is_done(asked, found) and not is_done(asked, found[1:])
    assert "| 0.030 s | 2.0% | 0.10% |" in table(found)
    assert "| median of 2 | | 30.0 s | 6 |" in table(found)

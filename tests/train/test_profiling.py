"""Traces of the steps asked for, on rank 0, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch

from loopcoder.config.schema import ProfileConfig
from loopcoder.errors import InputError
from loopcoder.train.profiling import StepProfiler


def run(profiler: StepProfiler, steps: int) -> None:
    for step in range(1, steps + 1):
        with profiler.step(step):
            torch.ones(3, 5) @ torch.ones(5, 4)


def test_traces_the_steps_asked_for(tmp_path):
    run(StepProfiler(ProfileConfig(trace_steps=[2, 4]), tmp_path, rank=0), 5)
    names = ["step_00000002.trace.json", "step_00000004.trace.json"]
    assert sorted(p.name for p in (tmp_path / "profile").iterdir()) == names
    for name in names:
        events = json.loads((tmp_path / "profile" / name).read_text())["traceEvents"]
        (product,) = [e for e in events if e.get("name") == "aten::mm"]  # of this step only
        assert product["args"]["Input Dims"][:2] == [[3, 5], [5, 4]]


@pytest.mark.parametrize(("rank", "steps"), [(1, [1, 2]), (0, []), (0, [9])])
def test_writes_nothing_elsewhere(tmp_path, rank, steps):
    run(StepProfiler(ProfileConfig(trace_steps=steps), tmp_path, rank), 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("traced", [True, False])
def test_an_error_in_the_step_comes_through(tmp_path, traced):
    profiler = StepProfiler(ProfileConfig(trace_steps=[1] if traced else []), tmp_path, rank=0)
    with pytest.raises(ZeroDivisionError), profiler.step(1):
        raise ZeroDivisionError
    # The next step can be traced: the profiler was stopped.
    run(StepProfiler(ProfileConfig(trace_steps=[1]), tmp_path, rank=0), 1)
    assert (tmp_path / "profile" / "step_00000001.trace.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_memory_snapshots_need_a_gpu(tmp_path):
    with pytest.raises(InputError, match=r"profile\.memory_steps=\[3\] without a GPU") as error:
        StepProfiler(ProfileConfig(memory_steps=[3]), tmp_path, rank=0)
    assert error.value.problems[0].fix == "profile.memory_steps=[]"


@pytest.mark.gpu
def test_memory_snapshot(tmp_path):
    import pickle

    profiler = StepProfiler(ProfileConfig(memory_steps=[2]), tmp_path, rank=0)
    for step in (1, 2, 3):
        with profiler.step(step):
            torch.ones(1 << 20, device="cuda")
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "step_00000002.memory.pickle"
    traces = pickle.loads(path.read_bytes())["device_traces"]
    assert (
        sum(event["action"] == "alloc" and event["size"] >= 4 << 20 for t in traces for event in t)
        == 2
    )
    torch.cuda.memory._record_memory_history(enabled=None)

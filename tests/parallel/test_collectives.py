"""What torch's flight recorder knows of a collective that does not end."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any

import pytest

from loopcoder.parallel import collectives
from loopcoder.parallel.collectives import nccl_trace, pending
from tests.dist.launch import in_processes


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "profiling_name": "nccl:all_reduce",
        "process_group": ["7", "DATA_PARALLEL_GROUP"],
        "collective_seq_id": 12,
        "p2p_seq_id": 0,
        "is_p2p": False,
        "input_sizes": [[1024, 8]],
        "input_dtypes": ["BFloat16"],
        "state": "started",
        "retired": False,
        "time_created_ns": 5_000_000_000,
    } | changes


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the recorders of torch, for there is no NCCL where this is tested."""

    class Recorder:
        gloo: Any = staticmethod(lambda: json.dumps({"entries": []}).encode())
        nccl: Any = staticmethod(lambda: json.dumps({"version": "2.10"}).encode())

    def dump(kind: str) -> bytes:
        return bytes(getattr(Recorder, kind)())

    module = collectives._distributed_c10d
    monkeypatch.setattr(module, "_dump_fr_trace_json", partial(dump, "gloo"), raising=False)
    monkeypatch.setattr(module, "_dump_nccl_trace_json", partial(dump, "nccl"), raising=False)
    monkeypatch.setattr(module, "_dump_nccl_trace", lambda: b"pickled", raising=False)
    monkeypatch.setattr(collectives, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(collectives.time, "time_ns", lambda: 70_000_000_000)
    return Recorder


def test_what_has_not_ended_is_told_in_words(recorder: Any) -> None:
    assert pending() == [] and nccl_trace() is None
    ended = [entry(retired=True), entry(state="completed")]
    send = entry(profiling_name="nccl:send 0->1", is_p2p=True, p2p_seq_id=3, time_created_ns=0)
    recorder.nccl = lambda: json.dumps({"entries": [*ended, entry(), send]}).encode()
    group = "of group 7 DATA_PARALLEL_GROUP (BFloat16 [1024, 8])"
    assert pending() == [
        f"nccl:send 0->1 number 3 {group}, for 70 s",
        f"nccl:all_reduce number 12 {group}, for 65 s",
    ]
    assert nccl_trace() == b"pickled"


def test_a_device_that_hangs_does_not_hold_the_watch(recorder: Any) -> None:
    end = threading.Event()
    recorder.nccl = lambda: end.wait() and b""
    recorder.gloo = lambda: b"another format"
    assert pending() == []
    end.set()

    def broken() -> bytes:
        raise RuntimeError("CUDA error")

    recorder.nccl = broken
    assert pending() == [] and nccl_trace() is None


def test_another_torch_tells_nothing(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json", "_dump_nccl_trace"):
        monkeypatch.delattr(collectives._distributed_c10d, name)
    assert pending() == [] and nccl_trace() is None


def _wait_for_the_other(rank: int) -> list[str]:
    """Return what rank 0 is in while rank 1 does not come, which does so when it was told."""
    import torch
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()
    found: list[str] = []
    if rank == 0:
        waiting = threading.Thread(target=dist.all_reduce, args=[torch.ones(3, 5)])
        waiting.start()
        while not found:
            found = pending()
        store.set("told", "yes")
        waiting.join()
        assert pending() == []
    else:
        store.wait(["told"])
        dist.all_reduce(torch.ones(3, 5))
    return found


@pytest.mark.chaos
def test_gloo_tells_what_it_waits_in() -> None:
    (told, *more), _ = in_processes(2, _wait_for_the_other)
    assert told.startswith("gloo:all_reduce number 1 of group 0 default_pg (Float [3, 5]), for ")
    assert not more

"""torchrun without its comments."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from launch.nodes import arguments_of_torchrun
from loopcoder.config.schema import ParallelConfig
from loopcoder.parallel import elastic


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(elastic.signal, "signal", lambda *_: None)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("others", [False, True])
def test_only_other_nodes_get_time_to_read(
    others: bool, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(elastic.time, "sleep", slept.append)

    def fail(_options: object) -> None:
        failure = ProcessFailure(0, 1, rng.randint(1, 99), "/nowhere")
        raise ChildFailedError("loopcoder", {0: failure})

    monkeypatch.setattr(torch.distributed.run, "run", fail)
    nodes = ["--nnodes=2"] if others else arguments_of_torchrun(ParallelConfig())
    assert elastic.main([*nodes, "--nproc-per-node=2", "-m", "loopcoder", "train"]) == 1
    assert len(slept) == others

"""An allocation that fails, of a GPU or of the machine, is an error of three parts."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loopcoder.data.corpus import Corpus
from loopcoder.errors import OutOfMemory
from tests.configs import small_config
from tests.data.conftest import corpus, data
from tests.train.test_validation import Network, configured, state

__all__ = ["corpus", "data", "state"]  # fixtures


def allocate(text: str) -> None:
    """Fail as PyTorch does on this machine, or as on another."""
    if text == "cpu":
        torch.empty(1 << 60, dtype=torch.uint8)
    raise {
        "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."),
        "numpy": MemoryError("Unable to allocate 32.0 GiB"),
    }[text]


@pytest.mark.parametrize(
    ("length", "fix"),
    [
        (32, "train.micro_batch_size=1"),  # of the stage
        (48, "eval.lengths=[8] or train.micro_batch_size=1"),
        (8, "eval.lengths=null or train.micro_batch_size=1"),
    ],
)
def test_an_evaluation_without_memory_is_an_error_of_three_parts(
    corpus: Corpus, state: Any, monkeypatch: pytest.MonkeyPatch, length: int, fix: str
) -> None:
    from loopcoder.train import validation

    plain, of = validation.losses, {"kind": "gpu"}

    def losses(state: Any, batches: list[Any], *, every_loop: bool) -> Any:
        if batches[0].tokens.shape[1] == length:
            allocate(of["kind"])
        return plain(state, batches, every_loop=every_loop)

    monkeypatch.setattr(validation, "losses", losses)
    config = configured(3, lengths=[48, 8])
    trains = validation.Evaluator(config, corpus, Path("/a run"))
    for of["kind"] in ("cpu", "gpu", "cublas", "numpy"):
        with pytest.raises(OutOfMemory) as error:
            trains(state)
        fact, why, mended = str(error.value).split("\n")
        assert f"an evaluation at {length} tokens (" in fact and "ran out of memory" in fact
        assert ("eval.lengths" in fact) == (length != 32)
        assert "alloc" in why.lower()
        assert mended.endswith(f"fix: {fix}, with 'run_dir=/a run' to continue")
        assert error.value.exit_code == 76
    with pytest.raises(OutOfMemory, match=rf"{re.escape(fix)}$"):  # of `loopcoder evaluate`
        validation.Evaluator(config, corpus)(state)


def test_another_error_stays_what_it_is(
    corpus: Corpus, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopcoder.train import validation

    def losses(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(validation, "losses", losses)
    with pytest.raises(RuntimeError, match="shapes"):
        validation.Evaluator(configured(3), corpus)(state)


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_trained_is_saved_before_memory_is_complained_of(world_size: int) -> None:
    """Of several ranks the others may wait for this one, and cannot save with it."""
    from loopcoder.train.loop import Run

    done: list[str] = []

    def evaluation(*_: Any) -> None:
        raise OutOfMemory.of("fact", "why", "fix")

    run: Any = SimpleNamespace(
        evaluation=evaluation,
        state=None,
        position=None,
        ranks=SimpleNamespace(world_size=world_size, device=torch.device("cpu")),
        stop=SimpleNamespace(requested=lambda *_, **__: False),
        watch=SimpleNamespace(within=lambda _: nullcontext()),
        saver=SimpleNamespace(finish=lambda: done.append("finished")),
        _save=lambda: done.append("saved"),
    )
    with pytest.raises(OutOfMemory):
        Run._evaluate(run, 0)
    assert done == (["saved", "finished"] if world_size == 1 else [])


@pytest.mark.parametrize("fails", ["cpu", "gpu"])
def test_a_step_without_memory_is_named_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str
) -> None:
    from loopcoder.train import loop
    from loopcoder.train.compute import ComputeTime

    monkeypatch.setattr(loop, "forward_backward", lambda *_: allocate(fails))
    run: Any = SimpleNamespace(
        config=small_config(),
        run_dir=tmp_path,
        warmup=0,
        captured=None,
        corpus=SimpleNamespace(domains=["text"]),
        state=SimpleNamespace(network=Network(), compute=ComputeTime(torch.device("cpu"))),
    )
    data: Any = SimpleNamespace(
        before=SimpleNamespace(stage=0), after=SimpleNamespace(step=7), microbatches=[]
    )
    with pytest.raises(OutOfMemory, match="step 7 ran out of memory") as error:
        loop.Run._step(run, data, None)
    assert f"parallel.recompute=full, with run_dir={tmp_path} to" in str(error.value)


def test_what_graphs_keep_can_be_given_back(tmp_path: Path) -> None:
    """Of runs that may have some; not of checkpoints that are evaluated by themselves."""
    from loopcoder.train import out_of_memory

    plain = small_config()
    graphs = replace(plain, train=replace(plain.train, cuda_graphs="on"))
    off = "train.cuda_graphs=off"
    for config in (plain, graphs):
        said = [
            out_of_memory.smaller_step(config, tmp_path),
            out_of_memory.smaller_evaluation(config, 32, 0, tmp_path),
            out_of_memory.smaller_samples(config, tmp_path),
        ]
        assert [off in fix for fix in said] == [config is graphs] * 3
    # with graphs nothing is recomputed
    assert "recompute" not in out_of_memory.smaller_step(graphs, tmp_path)
    assert off not in out_of_memory.smaller_evaluation(graphs, 32, 0, None)
    assert off not in out_of_memory.smaller_samples(graphs, None)

"""Whether steps are CUDA graphs: by what was asked, by the machine and by the size of the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loopcoder.backends import Backends
from loopcoder.config.check import check
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.errors import InputError
from loopcoder.train.graph_choice import GraphChoice, choose_graphs

CPU = Backends(versions={"torch": "2.11.0"})
GPU = Backends(1, "NVIDIA H200", (9, 0), {"torch": "2.11.0", "transformer_engine": "2.20.2"})
SIZES = {
    14: (6, 384, 1024),
    91: (12, 768, 2048),
    300: (24, 1024, 2816),
}
"""Millions of parameters: layers, width, width of the MLP."""


def choice(backends: Backends, *overrides: str, world_size: int = 1) -> GraphChoice:
    config = resolve(compose([*overrides]), backends)
    check(config, world_size, backends)
    return choose_graphs(config, world_size, backends)


def test_nobody_asked() -> None:
    assert choice(GPU) == GraphChoice(False, None)


def test_auto_on_a_cpu_is_off_and_on_is_an_error() -> None:
    found = choice(CPU, "train.cuda_graphs=auto")
    assert not found.uses
    assert found.said is not None and "no GPU" in found.said
    with pytest.raises(InputError, match=r"no GPU(.|\n)*fix: train.cuda_graphs=off"):
        choice(CPU, "train.cuda_graphs=on")


@pytest.mark.parametrize("size", SIZES)
def test_auto_takes_small_models(size: int) -> None:
    layers, width, inner = SIZES[size]
    shape = f"model.num_layers={layers} model.hidden_size={width} model.ffn_hidden_size={inner}"
    step = "train.global_batch_size=32 train.micro_batch_size=32 data.seq_length=1024"
    found = choice(GPU, "train.cuda_graphs=auto", *shape.split(), *step.split())
    assert found.uses and not found.insists
    assert found.said is not None and "32,768 tokens" in found.said


def test_auto_leaves_large_models_as_they_are() -> None:
    seven_b = ["model=plt_7b", "train.micro_batch_size=1", "data.seq_length=8192"]
    found = choice(GPU, "train.cuda_graphs=auto", *seven_b)
    assert not found.uses
    assert found.said is not None and "not less than" in found.said
    assert choice(GPU, "train.cuda_graphs=on", *seven_b).uses


def test_auto_counts_the_shortest_stage() -> None:
    """A step of it is launch-bound although those of the longer ones are not."""
    config = resolve(compose(["model=plt_1b", "train.cuda_graphs=auto"]), GPU)
    long = replace(config, data=replace(config.data, seq_length=65536))
    short = replace(config, data=replace(config.data, seq_length=128))
    assert not choose_graphs(long, 1, GPU).uses
    assert choose_graphs(short, 1, GPU).uses


def test_auto_says_what_stands_against_it() -> None:
    config = resolve(compose(["train.cuda_graphs=auto", "parallel.recompute=full"]), GPU)
    found = choose_graphs(config, 2, GPU)
    assert not found.uses
    assert found.said is not None and "2 processes" in found.said

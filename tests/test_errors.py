"""The words of messages."""

from __future__ import annotations

import pytest

from loopcoder.backends import Backends
from loopcoder.cli.overview import overview
from loopcoder.config.check import check
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.errors import InputError, counted

CPU = Backends()


def test_a_number_has_its_noun() -> None:
    assert [counted(n, "document") for n in (0, 1, 2000)] == [
        "0 documents",
        "1 document",
        "2,000 documents",
    ]
    assert counted(1, "process") == "1 process"
    assert (counted(0, "process"), counted(3, "microbatch")) == ("0 processes", "3 microbatches")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["parallel.tp=2"], "1 process, parallel.tp=2"),
        (["parallel.pp=2", "train.micro_batch_size=4"], "4 sequences per step: 1 microbatch\n"),
        (
            ["train.global_batch_size=1", "train.micro_batch_size=2", "data.mixture={code:1}"],
            "1 data-parallel rank with 2 sequences each does 2 at a time",
        ),
    ],
)
def test_one_is_not_a_plural(overrides: list[str], said: str) -> None:
    config = resolve(compose(overrides), CPU)
    with pytest.raises(InputError) as caught:
        check(config, config.parallel.pp, CPU)
    assert said in str(caught.value)


def test_one_of_each_in_the_overview() -> None:
    overrides = ["train.max_steps=1", "optim.schedule.warmup_steps=1", "eval.interval=1"]
    single = ["model.num_layers=1", "train.global_batch_size=1", "data.mixture={code:1}"]
    overrides += [*single, "train.micro_batch_size=1"]
    text = overview(resolve(compose(overrides), CPU), overrides, 1)
    for said in (
        "1 layer of",
        "1 of 1 sequence,",
        "warm-up 1 step,",
        "1 process (",
        "evaluation 1 step,",
    ):
        assert said in text, text

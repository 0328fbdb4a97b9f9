"""The dozen lines that a run starts with."""

from __future__ import annotations

import pytest

from loopcoder.cli.overview import overview
from loopcoder.config.compose import compose


def test_it_is_short_and_has_the_numbers_that_matter() -> None:
    asked = ["model.num_loops=3", "optim.lr=0.004", "train.max_steps=77"]
    text = overview(compose(asked), asked, 1)
    assert len(text.splitlines()) <= 15
    for part in ("model.num_loops=3 optim.lr=0.004", "R = 3", "0.004", "77 of", "1 process ("):
        assert part in text, part


def test_stages_ramp_layout_and_branch_are_there() -> None:
    asked = [
        "data.stages=[{until:5000,mixture:{text:1}},{mixture:{text:1,code:3},seq_length:256}]",
        "data.skip=[{step:7,steps:2},{step:70,steps:1}]",
        "train.batch_ramp={start:4,increment:4,samples:64}",
        "parallel=tp2_sp",
        "checkpoint.init_from=/other",
        "optim=adam_wsd",
    ]
    text = overview(compose(asked), asked, 4)
    for part in (
        "until 5,000 tokens; then",
        "1 : 3",
        "sequences of 256; what 2 steps would take is left out before step 7; what 1 step would",
        "(from 4)",
        "dp 2, tp 2 with sp",
        "weights from  /other",
        "wsd",
    ):
        assert part in text, part
    assert "objective" not in text
    asked = ["objective.loop_weights=[1,2]", "objective.loop_count=uniform"]
    text = overview(compose(asked), [], 1)
    assert "loop_weights=[1,2], loop_count=uniform\n" in text
    assert "R = 1" in overview(compose(["model.num_loops=1"]), [], 1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["optim.schedule.decay_steps=0"], "lr 0.003 (wsd without a decay), warm-up"),
        (["optim.schedule.decay_fraction=0"], "(wsd without a decay)"),
        (["optim.schedule.decay_steps=7"], "(wsd, decay over the last 7 steps)"),
        (["optim.schedule.decay_fraction=0.2"], "(wsd, decay over the last 0.2 of the steps)"),
    ],
)
def test_how_long_a_decay_is(asked: list[str], says: str) -> None:
    text = overview(compose(["optim=adam_wsd", "optim.lr=0.003", *asked]), [], 1)
    assert says in text
    assert ("0.003 to" in text) == ("last" in says)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ([], "checkpoint 100 steps (3 kept, and the one of step 900, where the decay begins)"),
        (["checkpoint.interval=70"], "70 steps (3 kept, and the one of step 900, where"),
        (["checkpoint.keep=null"], "100 steps (and the one of step 900, where"),
        (["optim.schedule.decay_steps=250"], "(3 kept, and the one of step 750, where"),
        (["train.max_steps=20000"], "the one of step 18,000, where"),
        # nothing decays, or nothing is saved on the way
        (["optim.schedule.decay_steps=0"], "checkpoint 100 steps (3 kept)"),
        (["checkpoint.interval=null"], "checkpoint at the end (3 kept)"),
        (["optim=adam_cosine"], "checkpoint 100 steps (3 kept)"),
    ],
)
def test_the_checkpoint_before_a_decay_is_counted(asked: list[str], says: str) -> None:
    wsd = ["optim=adam_wsd", "train.max_steps=1000", "checkpoint.interval=100", "checkpoint.keep=3"]
    (line,) = (li for li in overview(compose([*wsd, *asked]), [], 1).splitlines() if "every" in li)
    assert says in line and ("decay" in line) == ("decay" in says or "where" in says)

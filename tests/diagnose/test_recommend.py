"""What is recommended of one model, and what is told of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from loopcoder.diagnose.recommend import recommend
from tests.diagnose.made_up import diagnosis

PUBLISHED: dict[str, Any] = {
    "effective_rank_normed": [150, 174.6, 172.5, 158.2],
    "output_shift": [None, 1.75, 1.32, 1.58],
    "offset_cost_raw": [None, 54, 60, 51],
    "alignment_raw": [None, -0.72, -0.46, 0.04],
    "step_size_raw": [1900, 846, 464, 1014],
    "fixed_point_gap_raw": [900, 500, 800, 700],
}
LOSS = [3.0, 2.6, 2.5, 2.4]


def made(rng: random.Random, trained: int = 4, **changes: Any) -> Any:
    values = {"loss": LOSS[:trained], "width": 0.001, "layers": 1, **PUBLISHED, **changes}
    return diagnosis(rng, trained=trained, languages=(), **values)


def test_the_published_numbers_give_the_published_advice(rng: random.Random) -> None:
    found = recommend(made(rng))
    assert found.loops == 2
    assert "loop 3 of the 4" in found.text
    told = "\n".join(found.reasons)
    assert "172.50 ± 0.17; it falls by 2.10 ± 0.25" in told
    assert (
        "Loop 3 is not counted: the effective rank falls (the paper's rule: stop) and it brings "
        "less than the loop before it at a larger offset." in found.reasons
    )
    assert "Alignment at loop 2, of raw states: -0.72000 ± 0.00072; the loop takes back" in told
    assert "Alignment at loop 4, of raw states: 0.040000 ± 0.000040; the loop goes on" in told
    assert "69% of the step of loop 4 (1,014.0 ± 1.0)" in told


def test_within_the_intervals_nothing_is_told_apart(rng: random.Random) -> None:
    # at 2% the ranks of loops 2 and 3 overlap, as do the offsets at 8%
    found = recommend(
        made(rng, width=0.02, loss=[3.0, 2.6, 2.2, 1.8], offset_cost_raw=[None, 54, 55, 51])
    )
    assert found.loops == 3
    assert any(
        "Effective rank at loop 3" in reason and "not told" in reason for reason in found.reasons
    )
    assert "Loop 4 is not counted: the effective rank falls" in "\n".join(found.reasons)
    no_intervals = recommend(made(rng, width=0.0))
    assert no_intervals.loops == 1
    assert any("as there are no intervals" in reason for reason in no_intervals.reasons)


@pytest.mark.parametrize(
    ("loss", "why"), [([2.6, 2.6], "not told apart from that"), ([2.4, 2.6], "is higher than")]
)
def test_a_loop_without_a_lower_loss_does_not_count(
    rng: random.Random, loss: list[float], why: str
) -> None:
    found = recommend(made(rng, 2, loss=loss))
    assert found.loops == 1
    assert why in "\n".join(found.reasons)


def test_paired_differences_tell_more_than_two_losses(rng: random.Random) -> None:
    loss = [2.6, 2.55]
    assert recommend(made(rng, 2, width=0.02, loss=loss)).loops == 1
    found = recommend(made(rng, 2, width=0.02, loss=loss, is_paired=True))
    assert found.loops > 1
    assert "2.600 ± 0.052 → 2.550 ± 0.051 nats; it falls by 0.0500 ± 0.0010." in found.reasons[0]


def test_less_for_more_is_not_counted_where_the_rank_is_still(rng: random.Random) -> None:
    found = recommend(made(rng, 3, effective_rank_normed=[150, 170, 170]))
    assert found.loops == 2
    assert any("Loop 3 is not counted: it brings less" in reason for reason in found.reasons)
    cheaper = recommend(
        made(rng, 3, effective_rank_normed=[150, 170, 170], offset_cost_raw=[None, 54, 50])
    )
    assert cheaper.loops == 3
    assert "nothing speaks for another" in cheaper.text


def test_a_rising_rank_speaks_for_another_loop_unless_the_states_are_at_rest(
    rng: random.Random,
) -> None:
    found = recommend(made(rng, 2))
    assert found.loops == 3
    assert "another may" in found.text
    at_rest = recommend(made(rng, 2, fixed_point_gap_raw=[900, 80]))
    assert at_rest.loops == 2
    assert any("would hardly move the states" in reason for reason in at_rest.reasons)


def test_loops_beyond_training_have_no_say(rng: random.Random) -> None:
    found = recommend(made(rng, 2, loops=4, loss=LOSS))
    assert found.loops == 3
    assert not any("Loop 3" in reason or "loop 4" in reason for reason in found.reasons)


def test_one_loop_says_nothing_about_a_second(rng: random.Random) -> None:
    found = recommend(diagnosis(rng, trained=1, layers=1, loss=[2.5]))
    assert found.loops == 1
    assert "train R = 2" in found.text
    assert found.reasons[0] == "Loss: 2.500 ± 0.025 nats."


def test_what_was_not_measured_is_said(rng: random.Random) -> None:
    control = diagnosis(rng, trained=2, gates=False, layers=1, loss=[2.6, 2.3])
    assert "Fixed-point gap at loop 2: not measured." in recommend(control).reasons
    bare = made(rng, 2, effective_rank_normed=[None, None])
    found = recommend(bare)
    assert found.loops == 2
    assert "Effective rank at loop 2: not measured." in found.reasons


@pytest.mark.parametrize("has_series", [True, False])
def test_a_loop_whose_loss_was_not_measured_does_not_count(
    rng: random.Random, has_series: bool
) -> None:
    found = made(rng, 3)
    if has_series:
        for series in found.series:
            if series.measure == "loss":
                series.values[1] = None
    else:
        found.series[:] = [series for series in found.series if series.measure != "loss"]
    advice = recommend(found)
    assert advice.loops == 1
    assert "Loop 2 is not counted: its loss was not measured." in advice.reasons


def test_what_a_loop_costs(rng: random.Random) -> None:
    found = recommend(made(rng, layers=14))
    # docs of the released model: 6 * (R * L * 487,587,840 + V * d) + R * L * 6 * S * d + the window
    per_loop = 14 * (6 * 487_587_840 + 6 * 4096 * 5120)
    one = per_loop + 6 * 76800 * 5120
    two = 2 * per_loop + 6 * 76800 * 5120 + 14 * 12 * 65 * 5120
    assert any(f"{two / one:.2f} times the FLOPs of R = 1" in reason for reason in found.reasons)
    nameless = made(rng)
    nameless.model["vocab_size"] = None
    assert any("the size of the vocabulary" in r for r in recommend(nameless).reasons)
    del nameless.data["sequence_length"]
    nameless.model["vocab_size"] = 10
    assert any("the length of the sequences" in r for r in recommend(nameless).reasons)
    nameless.data["sequence_length"] = 10
    nameless.model["no_such_field"] = 1
    assert any("as this version has them" in r for r in recommend(nameless).reasons)

"""Numbers of a record in words."""

from __future__ import annotations

from loopcoder.metrics.words import describe, describe_evaluation, duration, human


def test_an_evaluation_names_further_lengths_apart_from_domains() -> None:
    record = {"step": 9, "val/loss": 2.0, "val/loss/code": 1.5, "val/loss/len16": 3.0}
    record |= {"val/loss/len512": 1.75, "val/loss/len512/code": 1.25, "val/loss/len512/loop0": 4.0}
    record |= {"val/bpb/len512/code": 0.5, "val/loss/lengthy": 6.0, "val/weighting": "mixture"}
    record |= {"val/exam/loss": 7.0, "val/exam/loss/code": 8.0, "val/exam/loss/len16": 9.0}
    assert describe_evaluation(record) == (
        "eval step 9: val 2.0000  |  code 1.5000  lengthy 6.0000  |  exam 7.0000  |  "
        "by length 16: 3.0000  512: 1.7500"
    )


def test_describe_states_units_and_leaves_out_what_is_absent() -> None:
    record = {
        "step": 3,
        "loss": 1.0,
        "val/loss": 2.0,
        "grad_norm": 0.5,
        "lr": 3e-4,
        "mfu_causal": 0.41,
        "mfu_full": 0.45,
        "data_wait_s": 0.01,
        "step_time_s": 0.5,
        "memory_bytes": 2**31,
        "skipped": 1,
    }
    assert "  ".join(describe(record, 10, 7.0)) == (
        "loss 1.0000  val 2.0000  grad 0.5  lr 3.00e-04  MFU 41.0% causal, 45.0% full  "
        "data wait 2.0%  mem 2.00 GiB  skipped 1  ETA 7s"
    )
    assert describe({"step": 3}, 10, None) == []


def test_numbers_for_people() -> None:
    assert [human(x) for x in (0.5, 999.4, 999.6, 12345, 7.6e9, 2.5e15)] == [
        "0.5",
        "999",
        "1k",
        "12.3k",
        "7.6B",
        "2.5e+03T",
    ]
    assert [duration(x) for x in (45, 190, 7500, 4 * 86400 + 3 * 3600)] == [
        "45s",
        "3m10s",
        "2h05m",
        "4d03h",
    ]

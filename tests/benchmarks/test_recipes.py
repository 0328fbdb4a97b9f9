"""The runs behind docs/recipes.md: what is skipped, and how a table reads them."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("best", [0.7e-3, 1e-3, 1.31e-3])
def test_the_optimum_is_that_of_the_parabola(best):
    import math

    from recipe_study import optimum

    rates = [1e-3 * 2 ** (power / 2) for power in range(-3, 4)]
    curve = [(rate, 3.0 + 0.1 * math.log2(rate / best) ** 2) for rate in rates]
    assert optimum(curve) == pytest.approx((best, 0.1))
    assert optimum([*curve, (4e-3, 9.0)]) == pytest.approx((best, 0.1))  # it diverges there


def test_an_optimum_beyond_the_rates_tried_is_none():
    from recipe_study import optimum

    assert optimum([(1e-3, 3.0), (2e-3, 2.9), (4e-3, 2.85)]) is None
    assert optimum([(1e-3, 3.0), (2e-3, 3.2), (4e-3, 3.0)]) is None
    assert optimum([(1e-3, 3.0), (2e-3, 2.0)]) is None


def test_a_spike_is_seen_above_the_steps_before():
    from recipe_study import spikes_table

    losses = [9.0 - 0.02 * i for i in range(200)]
    losses[120] += 0.8
    record = {"point": "R=2", "first_losses": losses, "first_grad_norms": [1.0, 2.0, 3.0]}
    assert "+0.690" in spikes_table([record])  # the ten steps before are 0.11 higher on average


def test_a_rise_that_runs_of_the_same_batches_share_is_the_text():
    from recipe_study import spikes_table

    def record(name: str, spikes: dict[int, float]) -> dict[str, object]:
        losses = [8.0 + spikes.get(i, 0.0) for i in range(100)]
        return {"point": name, "first_losses": losses, "first_grad_norms": [1.0]}

    text = {50: 0.6}
    table = spikes_table(
        [record("R=1", text), record("R=2", {50: 0.7}), record("R=3", {**text, 30: 0.5})]
    )
    row = {line.split(" | ")[0]: line.split(" | ")[1:3] for line in table.split("\n")[2:]}
    assert row["| R=1"] == ["+0.600", "+0.000"]
    assert row["| R=2"] == ["+0.700", "+0.100"]
    assert row["| R=3"] == ["+0.600", "+0.500"]


def test_loops_are_compared_by_seed():
    """Worked out by hand: differences -0.1 and -0.3, so -0.2 with an error of 0.1."""
    from recipe_study import loops_table

    losses = {"loops_1": {1: 3.0, 2: 3.4}, "loops_2": {2: 3.1, 1: 2.9}, "dense_2x": {1: 2.8}}
    table = loops_table(
        [
            {"point": name, "seed": seed, "val": {"val/loss": loss}}
            for name, by_seed in losses.items()
            for seed, loss in by_seed.items()
        ]
    )
    assert "| loops_1 | 3.2000 ± 0.2000 | 3.0000 3.4000 | - | +0.2000 |" in table
    assert "| loops_2 | 3.0000 ± 0.1000 | 2.9000 3.1000 | -0.2000 ± 0.1000 | +0.1000 |" in table
    assert "| dense_2x | 2.8000 | 2.8000 | -0.2000 | - |" in table


def test_a_point_that_a_study_lacks_is_refused(monkeypatch, capsys, tmp_path):
    import recipes

    command = ["recipes.py", "run", "--corpus", str(tmp_path), "loops_20m", "--only", "loops_9"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        recipes.main()
    assert "loops_20m has 'loops_1', 'loops_2'" in capsys.readouterr().err


def test_records_come_in_the_order_of_the_study_and_the_last_of_a_run_counts(tmp_path):
    import recipes
    from recipe_studies import STUDIES

    study = STUDIES["scales"]
    (last, first) = (list(study.runs())[i] for i in (-1, 0))
    lines = [
        {"point": last[1].name, "seed": last[0], "val": {"val/loss": 3.0}},
        {"point": first[1].name, "seed": first[0], "val": {"val/loss": 4.0}},
        {"point": first[1].name, "seed": first[0], "val": {"val/loss": 5.0}},
        {"point": "a point that is no more", "seed": 1, "val": {"val/loss": 1.0}},
    ]
    (tmp_path / "scales.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = recipes.records(tmp_path, study)
    assert [r["val"]["val/loss"] for r in found] == [5.0, 3.0]


@pytest.mark.dist_full
def test_every_study_composes():
    from recipe_studies import STUDIES

    for study in STUDIES.values():
        assert len({p.name for p in study.points}) == len(study.points)
        assert study.cost(study.points[0]) > 1e14


def test_what_is_kept_of_a_run(tmp_path):
    """Numbers of the last evaluation, whatever else its lines say."""
    import recipes

    run = tmp_path / "run"
    run.mkdir()
    lines = [
        {"step": i, "loss": 5.0 - i / 10, "grad_norm": 1.0, "tokens": 8 * i, "time": "now"}
        for i in range(1, 31)
    ]
    lines[-1] |= {"val/loss": 2.123456789, "val/loss/code": 1.5, "val/weighting": "mixture"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    kept = recipes.read_run(tmp_path)
    assert kept["val"] == {"val/loss": 2.12346, "val/loss/code": 1.5}
    assert (kept["steps"], kept["tokens"], len(kept["losses"])) == (30, 240, 3)


@pytest.mark.dist_full
def test_what_is_trained_is_diagnosed(corpus, monkeypatch, tmp_path):
    import recipes
    from recipe_study import Point, Study, losses_table

    from loopcoder.diagnose.results import read

    monkeypatch.setattr(recipes, "visible_gpus", lambda: ["0"])
    point = Point("b 0.5", ("model.num_loops=2", "model.hidden_scale=0.5"))
    shared = ("model=plt_tiny", "data.seq_length=64", "train.max_steps=2", "precision=fp32")
    study = Study("tiny", shared, (point,), (3,), losses_table)
    runner = recipes.Runner(corpus.dir, tmp_path / "results", 300, diagnoses=True)
    assert runner.run([study]) == 0
    (record,) = recipes.records(tmp_path / "results", study)
    (found,) = read([tmp_path / "results" / "tiny" / "b_0.5-seed3.json"])
    assert (found.step, found.model["hidden_scale"]) == (2, 0.5)
    loss = next(s for s in found.series if s.measure == "loss" and s.group == "all").values[-1]
    assert loss == pytest.approx(record["val"]["val/loss"], abs=0.5)

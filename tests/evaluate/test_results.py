"""Results as a table, as files and as a plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopcoder.errors import InputError
from loopcoder.evaluate.results import (
    Result,
    add_earlier,
    plot,
    stderr_of,
    table,
    write,
    write_samples,
)


def result(name: str, **metrics: dict[str, float]) -> Result:
    return Result(name, {"checkpoint": f"/{name}", "step": 3}, {"tasks": {"seed": 1}}, metrics)


def test_models_stand_side_by_side() -> None:
    a = result("a", mc={"acc": 0.5, "acc_stderr": 0.125}, own={"exact_match,strict": 1.0})
    b = result("b", mc={"acc": 0.25}, ppl={"bits_per_byte": 2.5})
    assert [line.split() for line in table([a, b]).splitlines()] == [
        ["task", "metric", "a", "b"],
        ["mc", "acc", "0.5000", "±", "0.1250", "0.2500"],
        ["own", "exact_match,strict", "1.0000", "-"],
        ["ppl", "bits_per_byte", "-", "2.5000"],
    ]


def test_the_error_of_a_metric_with_a_filter() -> None:
    assert stderr_of("acc") == "acc_stderr"
    assert stderr_of("exact_match,strict") == "exact_match_stderr,strict"
    one = result("a", t={"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.25})
    assert table([one]).splitlines()[1].split()[-3:] == ["0.5000", "±", "0.2500"]


def test_files_have_what_made_the_numbers(tmp_path: Path) -> None:
    one = result("a", mc={"acc": 0.5})
    record = write(one, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == record
    assert record["metrics"] == {"mc": {"acc": 0.5}} and record["settings"]["tasks"]["seed"] == 1
    assert record["packages"]["torch"] and record["python"] and "commit" in record
    write_samples({"group/mc": [{"doc": {"q": "é"}, "of": Path("/x")}]}, tmp_path)
    (line,) = (tmp_path / "samples_group-mc.jsonl").read_text().splitlines()
    assert json.loads(line) == {"doc": {"q": "é"}, "of": "/x"}


def test_results_of_other_tasks_stay(tmp_path: Path) -> None:
    write(result("a", mc={"acc": 0.5}), tmp_path)
    later = result("a")
    later.settings["human_eval"] = {"samples": 2, "workers": 1}
    add_earlier(later, tmp_path)
    later.metrics |= {"human_eval": {"pass@1": 0.25}}
    assert write(later, tmp_path)["metrics"] == {"mc": {"acc": 0.5}, "human_eval": {"pass@1": 0.25}}
    again = result("a")
    again.settings["tasks"]["places"] = 3
    add_earlier(again, tmp_path)
    assert again.metrics == later.metrics and again.settings["human_eval"]["samples"] == 2


def test_results_of_other_settings_or_weights_are_not_replaced(tmp_path: Path) -> None:
    first = result("a", mc={"acc": 0.5})
    first.settings["human_eval"] = {"samples": 2}
    write(first, tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    seeded, limited, moved, drawn = (result("a") for _ in range(4))
    seeded.settings["tasks"]["seed"] = 2
    limited.settings["tasks"]["limit"] = 9
    moved.about["weights"] = "other"
    drawn.settings["human_eval"] = {"samples": 3}
    for other, named in (
        (seeded, "tasks.seed"),
        (limited, "tasks.limit"),
        (moved, "weights"),
        (drawn, "human_eval.samples"),
    ):
        with pytest.raises(InputError, match=rf"another {named}\n(.|\n)*output=ANOTHER"):
            add_earlier(other, tmp_path)
    unknown = result("a")
    unknown.about["weights"] = None
    write(unknown, tmp_path)
    with pytest.raises(InputError, match="does not say its weights"):
        add_earlier(unknown, tmp_path)
    (tmp_path / "results.json").write_bytes(before[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        add_earlier(result("a"), tmp_path)


def test_a_plot_has_a_panel_for_each_metric(tmp_path: Path) -> None:
    results = [
        result("a", mc={"acc": 0.5, "acc_stderr": 0.1}, other={"acc": 0.1}),
        result("b", mc={"acc": 0.7}, ppl={"bits_per_byte": 1.0}),
    ]
    drawn = plot(results, tmp_path / "x.svg").read_text()
    for words in ("acc", "bits_per_byte", "mc", "other", "ppl", ">a<", ">b<"):
        assert words in drawn

"""`loopcoder diagnose` on a run: it finds the loss of `loopcoder evaluate`, in any layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parts import one_of
from tests.train.conftest import Start, finish

LAYOUTS = {
    "tp2": ["parallel=tp2"],
    "pp2": ["parallel.pp=2"],
    "dp2": ["parallel.nproc_per_node=2"],
}


def command(environment: dict[str, str], *arguments: str, code: int = 0) -> tuple[str, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "loopcoder", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout, ended.stderr


@pytest.mark.dist_full
def test_a_run_is_diagnosed(start: Start, tmp_path: Path, environment: dict[str, str]) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "out"
    finish(start(run_dir, "train.max_steps=6", "checkpoint.interval=3"))
    evaluated = json.loads(command(environment, "evaluate", f"checkpoint={run_dir}", "--json")[0])
    ask = ["diagnose", f"checkpoint={run_dir}", f"output={output}", "diagnose.sequences=8"]

    diagnosis = json.loads(command(environment, *ask, "--json")[0])
    assert_the_loss_is(evaluated, diagnosis)
    assert diagnosis["name"] == "run-6" and diagnosis["step"] == 6
    assert (output / "report.html").is_file()

    # what is finished is kept; what was asked for differently is not
    again = command(environment, *ask, "--json")
    assert "kept" in again[1] and json.loads(again[0])["made"] == diagnosis["made"]
    more = command(environment, *ask, "diagnose.loops=3", "--json")
    assert "kept" not in more[1] and json.loads(more[0])["loops"] == 3

    # two checkpoints of one run, in the processes of a layout
    for name in one_of(list(LAYOUTS)):
        both = [f"checkpoint={run_dir}/checkpoints/step_{step:08d}" for step in (3, 6)]
        ask = ["diagnose", *both, f"output={tmp_path / name}", "diagnose.sequences=8"]
        lines = command(environment, *ask, *LAYOUTS[name], "--json")[0].splitlines()
        first, last = (json.loads(line) for line in lines)
        assert (first["name"], last["name"]) == ("run-3", "run-6")
        assert last["made"]["processes"] == 2
        assert_the_loss_is(evaluated, last)


def assert_the_loss_is(evaluated: dict[str, Any], diagnosis: dict[str, Any]) -> None:
    """Compare by domain, by language and by loop."""
    checked = 0
    for series in diagnosis["series"]:
        if series["measure"] == "loss":
            at = {"all": "", "domain": series["group"].partition("/")[2]}.get(
                series["group"].partition("/")[0], series["group"]
            )
            name = f"val/loss/{at}".rstrip("/")
            assert series["values"][-1] == pytest.approx(evaluated[name], rel=2e-6), name
            checked += 1
            if f"{name}/loop0" in evaluated:
                assert series["values"][0] == pytest.approx(evaluated[f"{name}/loop0"], rel=2e-6)
    assert checked == 5

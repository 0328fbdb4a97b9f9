"""The examples ask for what there is: every command of them, without running it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.sweep.points import points
from loopcoder.backends import Backends
from loopcoder.cli.asked import as_asked
from loopcoder.config.compose import compose
from loopcoder.loaded import LoadedRun

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["ASKED"], "a") as file:
    stdin = "" if sys.argv[0].endswith("loopcoder") else sys.stdin.read()
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:], stdin]) + "\\n")
if sys.argv[1:] == ["data"]:
    print(os.path.dirname(os.environ["ASKED"]) + "/the corpus")
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The commands of the example, in order."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("loopcoder", "python"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    (folder / "the corpus").mkdir()
    manifest = {"format_version": 2, "fingerprint": "f", "tokenizer": {"vocab_size": 4096}}
    manifest["domains"] = {"text": {}, "code": {}}
    (folder / "the corpus" / "manifest.json").write_text(json.dumps(manifest))
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(folder / "asked")}
    example = ["sh", str(EXAMPLES / "whole_way.sh"), str(folder / "out put")]
    subprocess.run(example, env=environ, cwd=folder, check=True, capture_output=True)
    return [json.loads(line) for line in (folder / "asked").read_text().splitlines()]


def test_it_is_the_whole_way(asked: list[list[str]]) -> None:
    """From data over a sweep to a trained and evaluated model, and a model in Python."""
    assert [command[:2] for command in asked] == [
        ["loopcoder", "data"],
        ["loopcoder", "train"],
        ["loopcoder", "train"],
        *[["loopcoder", "evaluate"]] * 3,
        ["python", "-"],
    ]
    assert "-m" in asked[1] and "-m" not in asked[2]


def test_its_runs_compose(asked: list[list[str]]) -> None:
    folder, swept = points([a for a in asked[1][2:-1] if a != "-m"], None, Backends())
    assert [p.config.model.num_loops for p in swept] == [1, 2] and folder.name == "sweep"
    run = compose(asked[2][2:-1])
    assert str(run.data.path).endswith("/the corpus")
    assert run.train.max_steps > swept[0].config.train.max_steps


def test_its_evaluations_are_of_that_run(asked: list[list[str]]) -> None:
    run = compose(asked[2][2:-1])
    loops = []
    for _, _, checkpoint, *overrides, _ in asked[3:6]:
        assert checkpoint == f"checkpoint={run.run_dir}"
        loops.append(as_asked(run, compose(overrides), overrides).model.num_loops)
    assert loops == [2, 3, 1]


def test_its_program_uses_what_a_loaded_run_has(asked: list[list[str]]) -> None:
    tree = ast.parse(asked[-1][-1])
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "run"
    }
    assert used >= {"bits_per_byte", "logits", "tokenizer"}
    assert all(hasattr(LoadedRun, name) for name in used)


def test_it_says_what_to_expect() -> None:
    text = (EXAMPLES / "whole_way.sh").read_text()
    assert "nats per token" in text and text.count("minutes") >= 3

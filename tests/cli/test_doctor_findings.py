"""How the doctor's findings are told: a table, an object, an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from launch.process import child_environ
from loopcoder.cli import doctor
from loopcoder.cli import main as cli
from loopcoder.cli.examination import Place, hangs, measure, place, time_limit
from loopcoder.config.compose import compose
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import LEVELS, Finding, Node, Seen
from loopcoder.errors import InputError
from tests.cli.conftest import Loop

FIELDS = {"format_version", "level", "elapsed_s", "config", "run", "job", "nodes"}
FINDING = {field.name: field.type for field in fields(Finding)}


def check_schema(told: dict[str, Any]) -> None:
    """Fail unless an object is what docs/doctor.md says."""
    assert told.keys() == FIELDS and told["format_version"] == 1 and told["level"] in LEVELS
    assert isinstance(told["elapsed_s"], float)
    assert all(isinstance(value, str) for value in told["run"].values())
    for node in told["nodes"]:
        assert node.keys() == {"name", "findings", "values"}
        assert all(isinstance(value, str) for value in node["values"].values())
    found = [f for node in told["nodes"] for f in node["findings"]]
    for finding in (*found, *told["job"], *told["config"]):
        assert finding.keys() == FINDING.keys() and finding["level"] in LEVELS
        assert finding["check"] and finding["fact"]
        assert finding["level"] == "ok" or (finding["why"] and finding["fix"]), finding
        assert finding["value"] is None or (isinstance(finding["value"], float) and finding["unit"])


def planted(monkeypatch: pytest.MonkeyPatch, level: Any) -> None:
    seen = Seen([Finding("well", "ok", "fine"), Finding("x", level, "a fact", "a why", "a fix")])
    monkeypatch.setattr(doctor, "look_at_node", lambda *_: Node("here", seen))


@pytest.mark.parametrize(("level", "code"), [("note", 0), ("warning", 0), ("error", 3)])
def test_a_finding_decides_the_exit_code(
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    level: str,
    code: int,
) -> None:
    planted(monkeypatch, level)
    assert cli.main(["doctor"]) == code
    output = capsys.readouterr().out
    assert "a fact" in output and "why: a why" in output and "fix: a fix" in output
    assert f"findings: 1 ok, 1 {level}" in output and "fits on 1 process" in output
    assert cli.main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    check_schema(told)
    assert told["level"] == level and told["run"]["parameters"].startswith("919,432")


def test_a_config_that_is_refused_is_told_with_the_machine(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, "note")
    assert cli.main(["doctor", "parallel.cp=2"]) == 3
    output, error = capsys.readouterr()
    assert "a fact" in output and "parallel.cp=2" in error
    for refused in ("parallel.cp=2", "model.num_loops=x"):
        assert cli.main(["doctor", "--json", refused]) == 3
        told = json.loads(capsys.readouterr().out)
        check_schema(told)
        assert told["level"] == "error" and refused.split("=")[0] in told["config"][0]["fact"]


def test_nothing_touches_a_disk_that_hangs(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("disk of run_dir", "error", "hangs: no answer within 15 s", "w", "f")
    node = Node("here", Seen([finding]))
    assert hangs(node) and not hangs(Node("here", Seen([Finding("gpus", "error", "hangs: x")])))
    monkeypatch.setattr(doctor, "look_at_node", lambda *_: node)
    monkeypatch.setattr(doctor, "check_config", lambda *_: pytest.fail("it touches the disk"))
    assert cli.main(["doctor"]) == 3
    assert "hangs: no answer" in capsys.readouterr().out


def test_input_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr("loopcoder.cli.examination._RUN_S", 1)
    with pytest.raises(InputError, match="take more than 1 s"), time_limit():
        os.read(reader, 1)
    os.close(reader), os.close(writer)


def test_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["parallel.nodes=2", "parallel.rendezvous=HOST:1"])
    assert place(config, 8) == Place(False, 0, 0, 4, 2)
    for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    assert place(compose([]), 8) == Place(True, 5, 1, 4, 2)


def test_what_hangs_leaves_no_time_to_measure() -> None:
    node, began = Node("here", Seen()), time.monotonic() - t.TOTAL_S
    found = measure(compose([]), doctor.detect(), Place(False, 0, 0, 2, 1), node, began)
    assert [f.level for f in found.job.findings] == ["warning"]


def test_the_command_as_it_is(tmp_path: Path) -> None:
    """Nothing is stood in for; without GPUs, one process."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.md").write_text("words\n" * 100)
    (tmp_path / "text" / "a.py").write_text("x = 1\n" * 100)
    asked = ["--json", "data=files", f"path={tmp_path / 'text'}", f"run_dir={tmp_path / 'run'}"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "loopcoder", "doctor", *asked],
        env=child_environ() | {"CUDA_VISIBLE_DEVICES": "", "LOOPCODER_CACHE": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - began < 60
    told = json.loads(done.stdout)
    check_schema(told)
    assert done.returncode == (3 if told["level"] == "error" else 0)
    found = {f["check"] for f in told["nodes"][0]["findings"]}
    disks = {f"disk of {name}" for name in ("run_dir", "data.build.cache_dir", "data.path")}
    wanted = {"open files", "shared memory", "memory", "clock", "python", "gpus", "host name"}
    assert wanted | disks <= found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text"]

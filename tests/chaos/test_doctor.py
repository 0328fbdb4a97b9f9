"""The doctor on two machines with a network between them, and on one that remains alone."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.nodes import Node, cannot_make, nodes

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(cannot_make() is not None, reason="no nodes")]

CLOCK_AHEAD_S = 400
ANOTHER_CLOCK = f"""
import time
_real = time.time
time.time = lambda: _real() + {CLOCK_AHEAD_S}
"""


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "loopcoder", "doctor", "--json", "parallel.nodes=2"),
        *("parallel.rendezvous=10.77.0.1:29500", f"run_dir={folder / 'disk' / 'run'}"),
        *("parallel.nproc_per_node=1", "train.micro_batch_size=1"),
    ]


def told(text: str) -> dict[str, Any]:
    line = next((line for line in text.splitlines() if line.startswith("{")), None)
    assert line is not None, text
    found: dict[str, Any] = json.loads(line)
    return found


def of(found: list[dict[str, Any]], check: str) -> dict[str, Any]:
    return next(f for f in found if f["check"] == check)


def plant(folder: Path) -> dict[str, str]:
    """Return the environment of a machine with another clock and another version of a package."""
    site = folder / "site"
    (site / "rich-0.0.1.dist-info").mkdir(parents=True)
    (site / "rich-0.0.1.dist-info" / "METADATA").write_text("Name: rich\nVersion: 0.0.1\n")
    (site / "sitecustomize.py").write_text(ANOTHER_CLOCK)
    ours = str(Path(__file__).parents[2])
    return {"PYTHONPATH": f"{site}{os.pathsep}{ours}"}


@pytest.mark.parametrize("ill", [False, True])
def test_two_machines(tmp_path: Path, ill: bool) -> None:
    (tmp_path / "disk").mkdir()
    with nodes(2) as (first, second):
        began, environ = time.monotonic(), dict(os.environ)
        one = first.start(command(tmp_path), environ, tmp_path)
        environ |= plant(tmp_path) if ill else {}
        disk = tmp_path / "disk" if ill else None
        two = second.start(command(tmp_path), environ, tmp_path, disk_of_its_own=disk)
        output, other = one.communicate()[0], two.communicate()[0]
        assert time.monotonic() - began < 65  # the last seconds are those of starting Python
    seen = told(output)
    assert [node["name"] for node in seen["nodes"]] == ["node1", "node2"], output
    assert told(other)["job"] == seen["job"]
    job = seen["job"]
    assert of(seen["nodes"][0]["findings"], "all-reduce between nodes")["value"] > 0
    if not ill:
        assert one.returncode == two.returncode == 0, output
        assert {f["level"] for f in job} == {"ok"}, job
        return
    assert one.returncode == two.returncode == 3
    clock, shared = of(job, "clocks"), of(job, "shared run_dir")
    assert clock["level"] == "error" and abs(clock["value"] - CLOCK_AHEAD_S) < 5
    assert shared["level"] == "error" and "is not seen by node2" in shared["fact"]
    assert "0.0.1 on node2" in of(job, "nodes: rich")["fact"]


@pytest.mark.parametrize("here", ["where they meet", "elsewhere"])
def test_a_machine_that_is_alone(tmp_path: Path, here: str) -> None:
    (tmp_path / "disk").mkdir()
    with nodes(2) as both:
        alone: Node = both[0 if here == "where they meet" else 1]
        began = time.monotonic()
        process = alone.start(command(tmp_path), dict(os.environ), tmp_path)
        output = process.communicate()[0]
        assert time.monotonic() - began < 65
    seen = told(output)
    finding = of(seen["job"], "nodes")
    assert process.returncode == 3 and finding["level"] == "error"
    assert "10.77.0.1:29500" in finding["fact"] and finding["fix"]
    assert of(seen["nodes"][0]["findings"], "clock")["level"] == "ok"

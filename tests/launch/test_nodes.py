"""Two machines train one run: they meet, are lost, come back, and are refused by name."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from loopcoder.checkpoint import format as checkpoints
from tests.nodes import Node, cannot_make, nodes
from tests.parts import one_of
from tests.train.conftest import (  # noqa: F401
    SMALL,
    Start,
    documents,
    environment,
    finish,
    start,
)
from tests.train.test_resume import curve, wait_for_step

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(cannot_make() is not None, reason=cannot_make() or ""),
]

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = ["train.max_steps=100", "checkpoint.interval=20", "eval.interval=50"]
IN_A_MINUTE_S = 150
"""On a machine of which others use the most; it is a third of that on a quiet one."""
PORT = 29500

Both = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Node]]:
    with nodes(2) as made:
        yield made


@pytest.fixture(scope="module")
def local(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The run of two processes of one machine."""
    run_dir = tmp_path_factory.mktemp("local") / "run"
    finish(start(run_dir, "parallel.nproc_per_node=2", *STEPS))
    return run_dir


@pytest.fixture
def both(
    machines: list[Node],
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> Iterator[Both]:
    """Start the same command on both machines, or one that differs on the second."""
    started: list[subprocess.Popen[str]] = []

    def run(
        run_dir: Path,
        *overrides: str,
        on_second: list[str] = [],  # noqa: B006
        environ: dict[str, str] = {},  # noqa: B006
        environ_of_second: dict[str, str] = {},  # noqa: B006
        disk_of_second: Path | None = None,
    ) -> list[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"]
        command += ["parallel.nodes=2", f"parallel.rendezvous={machines[0].address}:{PORT}"]
        command += ["parallel.report_after_s=6", f"run_dir={run_dir}", *overrides]
        seen = environment | environ
        processes = [
            machines[0].start(command, seen, tmp_path),
            machines[1].start(
                [*command, *on_second], seen | environ_of_second, tmp_path, disk_of_second
            ),
        ]
        started.extend(processes)
        return processes

    yield run
    for process in started:
        process.kill()
        process.communicate()
    for machine in machines:
        machine.mend()


def test_a_short_cut_is_survived(
    both: Both, machines: list[Node], local: Path, tmp_path: Path
) -> None:
    """The curve is that of two processes of one machine, bit for bit."""
    run_dir = tmp_path / "run"
    first, second = both(run_dir, *STEPS)
    wait_for_step(first, run_dir, 10)
    machines[1].cut()
    # what is measured is how long the network is away
    time.sleep(8)
    machines[1].mend()
    assert "has been silent" not in finish(first)
    finish(second)
    assert curve(run_dir) == curve(local)


@pytest.mark.parametrize("how", one_of(["killed", "cut off", "without power"]))
def test_a_node_that_is_lost(
    both: Both, machines: list[Node], local: Path, tmp_path: Path, how: str
) -> None:
    run_dir = tmp_path / "run"
    first, second = both(run_dir, *STEPS, "parallel.timeout_s=20")
    wait_for_step(first, run_dir, 30)
    if how != "killed":
        machines[1].cut()
    began = time.monotonic()
    if how != "cut off":
        second.kill()
    output = finish(first, code=75)
    assert time.monotonic() - began < 20 + 2 * 15 + 8
    assert "rank 1 (node2, process" in output and "Traceback" not in output
    if how == "cut off":
        output = finish(second, code=75)
        assert "the node of rank 0 (10.77.0.1) has not answered" in output
        assert "Traceback" not in output
    machines[1].mend()
    assert checkpoints.complete(run_dir / "checkpoints")
    output = "".join(finish(process) for process in both(run_dir, *STEPS))
    assert "continues" in output or "resumed" in output
    assert curve(run_dir)[-1] == curve(local)[-1]


@pytest.mark.parametrize(
    ("cause", "named"),
    one_of(
        [
            ("config", "rank 1 has train.max_steps=7, rank 0 100"),
            ("interface", "rank 0 (node1, process"),
            ("disk", "rank 1 (node2) does not see in"),
            ("version", "rank 1 has megatron-core version=0.0.1, rank 0"),
        ]
    ),
)
def test_what_is_wrong_is_named_on_both(
    both: Both,
    machines: list[Node],
    local: Path,
    tmp_path: Path,
    cause: str,
    named: str,
) -> None:
    """`local` has built the corpus."""
    run_dir, changed = tmp_path / "disk" / "run", {}
    run_dir.parent.mkdir()
    if cause == "config":
        changed = {"on_second": ["train.max_steps=7"]}
    elif cause == "interface":
        changed = {"environ": {"GLOO_SOCKET_IFNAME": "lo"}}
    elif cause == "disk":
        changed = {"disk_of_second": run_dir.parent}
    elif cause == "version":
        other = tmp_path / "other" / "megatron_core-0.0.1.dist-info"
        other.mkdir(parents=True)
        (other / "METADATA").write_text("Name: megatron-core\nVersion: 0.0.1\n")
        path = f"{other.parent}:{REPOSITORY}"
        changed = {"environ_of_second": {"PYTHONPATH": path}}
    began = time.monotonic()
    both_started = both(run_dir, *STEPS, "checkpoint.visible_within_s=2", **changed)
    outputs = [finish(process, code=3) for process in both_started]
    assert time.monotonic() - began < IN_A_MINUTE_S
    assert named in "".join(outputs)
    assert "Traceback" not in "".join(outputs)
    if cause == "interface":
        assert "unset GLOO_SOCKET_IFNAME" in "".join(outputs)
    assert not list(tmp_path.glob("disk/run/checkpoints/*"))


def test_a_node_that_is_not_reached(
    both: Both, machines: list[Node], local: Path, tmp_path: Path
) -> None:
    """Both say for whom they wait."""
    machines[1].cut()
    began = time.monotonic()
    processes = both(tmp_path / "run", *STEPS)
    for process, named in zip(
        processes,
        ("node1 waits for the other nodes: not all of 2", "node2 waits for the other nodes: 10."),
        strict=True,
    ):
        assert process.stdout is not None
        assert any(named in line for line in process.stdout)
        assert time.monotonic() - began < IN_A_MINUTE_S
    for process in processes:
        (command,) = psutil.Process(process.pid).children()
        command.terminate()
        finish(process, code=75)


def test_a_machine_that_does_not_know_its_own_name(
    machines: list[Node],
    documents: Path,  # noqa: F811
    environment: dict[str, str],  # noqa: F811
    local: Path,
    tmp_path: Path,
) -> None:
    """Two processes of it meet nevertheless; torch looked for the name without end."""
    command = [sys.executable, "-m", "loopcoder", "train", *SMALL, f"path={documents}"]
    options = ["parallel.nproc_per_node=2", "train.max_steps=2", f"run_dir={tmp_path / 'run'}"]
    output = finish(machines[0].start([*command, *options], environment, tmp_path))
    assert "done: 2 steps" in output

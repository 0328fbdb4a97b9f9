"""A process that the kernel killed for want of memory is named as such."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import killed
from launch.killed import kernel_kills, kill_named
from launch.sweep import run
from launch.sweep.processes import Running
from loopcoder.backends import Backends
from loopcoder.cli import main as cli
from loopcoder.cli import train
from loopcoder.config.compose import compose
from loopcoder.config.resolve import resolve
from loopcoder.plan.fit import Needs, needs
from tests.cli.conftest import Loop, alone, loop

__all__ = ["alone", "loop"]


LARGE, SMALL = Needs("5 GiB", False), Needs("5 GiB of 500", True)


@pytest.mark.parametrize("code", [-signal.SIGKILL, killed.worker_killed(137)])
def test_a_small_run_was_hardly_killed_for_memory(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(killed, "kernel_kills", lambda: 3)
    text = kill_named(code, 3, lambda: SMALL) or ""
    assert "from outside" in text and "hardly" in text and "5 GiB of 500" in text
    assert "by the kernel for want of memory" in (kill_named(code, 2, lambda: SMALL) or "")


@pytest.mark.parametrize(("preset", "small"), [("plt_tiny", True), ("plt_1b", False)])
def test_what_is_small(monkeypatch: pytest.MonkeyPatch, preset: str, small: bool) -> None:
    monkeypatch.setattr("loopcoder.plan.device.machine_memory", lambda: (24 << 30, 20 << 30))
    config = resolve(compose([f"model={preset}", "data.seq_length=128"]), Backends())
    assert needs(config, 1, Backends()).is_small == small


def test_kills_are_counted_where_the_kernel_counts_them(tmp_path: Path) -> None:
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    assert kernel_kills((container, machine)) == 0
    machine.write_text("pgfault 12\noom_kill 7\n")
    assert kernel_kills((container, machine)) == 7
    container.write_text("low 0\noom 1\noom_kill 2\noom_group_kill 0\n")
    assert kernel_kills((container, machine)) == 2


def test_a_real_kill_is_named_and_other_ends_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code = subprocess.run([sys.executable, "-S", "-c", child], check=False).returncode
    monkeypatch.setattr(killed, "kernel_kills", lambda: 0)
    assert "killed by the kernel, most likely for want of memory: 5 GiB" in (
        kill_named(code, 0, lambda: LARGE) or ""
    )
    monkeypatch.setattr(killed, "kernel_kills", lambda: 4)
    assert kill_named(1, 3, lambda: LARGE) is not None  # a worker of torchrun
    for code, before in ((1, 4), (0, 3), (3, 3), (75, 3), (76, 3), (-signal.SIGTERM, 3)):
        assert kill_named(code, before, lambda: LARGE) is None


def test_workers_that_were_killed_are_named_with_the_estimate(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = iter([0, 1])
    monkeypatch.setattr(train, "kernel_kills", lambda: next(kills, 1))
    monkeypatch.setattr(killed, "kernel_kills", lambda: next(kills, 1))
    monkeypatch.setattr(train, "start_workers", lambda config, size: 1)
    layout = ["parallel.nproc_per_node=2", "train.micro_batch_size=2"]
    assert cli.main(["train", *layout]) == 76  # memory would be short again
    error = capsys.readouterr().err
    assert "killed by the kernel" in error
    assert "GiB by the estimate, this machine has" in error


def test_a_killed_worker_is_named_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "start_workers", lambda config, size: 137)
    assert cli.main(["train", "parallel.nproc_per_node=2", "train.micro_batch_size=2"]) == 75
    assert "GiB by the estimate, this machine has" in capsys.readouterr().err
    assert kill_named(137, kernel_kills(), lambda: LARGE) is None  # by the sweep that ran it


def test_a_point_of_a_sweep_that_was_killed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen(["sh", "-c", "kill -9 $$"])
    ended.wait()
    monkeypatch.setattr(run, "start_point", lambda point, *_, **__: Running(point, ended, []))
    monkeypatch.delenv("RANK", raising=False)
    run.sweep([f"run_dir={tmp_path}/sweep", "seed=1,2"], None, Backends())
    assert capsys.readouterr().err.count("GiB by the estimate, this machine has") == 2

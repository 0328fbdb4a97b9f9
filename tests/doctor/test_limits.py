"""Limits of the system, each planted once."""

from __future__ import annotations

import os
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopcoder.doctor import limits
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.findings import Finding, Seen


def found(check: str, *, root: Path | str = "/", ranks: int = 1) -> Finding:
    (one,) = (f for f in limits.check_limits(ranks, root=str(root)).findings if f.check == check)
    return one


@pytest.fixture
def files() -> Iterator[int]:
    """Return the hard limit of open files; put back the soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder in the place of /, with nothing to find fault with."""
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel").mkdir()
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/sys/vm/max_map_count").write_text("262144\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return tmp_path


def test_open_files_at_the_boundary(files: int) -> None:
    for soft, level in (
        (t.OPEN_FILES, "ok"),
        (t.OPEN_FILES - 1, "warning"),
        (t.OPEN_FILES_LEAST, "warning"),
        (t.OPEN_FILES_LEAST - 1, "error"),
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, files))
        finding = found("open files")
        assert (finding.level, finding.fact.split()[0]) == (level, str(soft))
        assert finding.fix.startswith("ulimit -n ") or level == "ok"


def test_more_files_than_the_hard_limit_are_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (1024, 2048))
    assert found("open files").fix.startswith("ulimit -n 2048, which is the most")
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (64, 64))
    assert found("open files").fix.startswith("`nofile` in /etc/security/limits.conf")


def test_locked_memory_matters_with_rdma(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (t.LOCKED_BYTES - 1,) * 2)
    assert found("locked memory", root=root).level == "ok"
    (root / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    finding = found("locked memory", root=root)
    assert finding.level == "warning" and "ulimit -l unlimited" in finding.fix
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (t.LOCKED_BYTES,) * 2)
    assert found("locked memory", root=root).level == "ok"


def test_few_memory_maps(root: Path) -> None:
    file = root / "proc/sys/vm/max_map_count"
    for number, level in ((t.MEMORY_MAPS, "ok"), (t.MEMORY_MAPS - 1, "warning")):
        file.write_text(f"{number}\n")
        finding = found("memory maps", root=root)
        assert finding.level == level and str(number) in finding.fact
    assert finding.fix == "sysctl -w vm.max_map_count=262144"


def test_a_control_group_with_few_tasks(root: Path, rng: random.Random) -> None:
    group = root / "sys/fs/cgroup/job"
    group.mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/job\n")
    ranks, used = rng.randint(1, 8), rng.randint(1, 99)
    (group / "pids.current").write_text(f"{used}\n")
    for left, level in (
        (t.TASKS_PER_RANK * ranks, "ok"),
        (t.TASKS_PER_RANK * ranks - 1, "warning"),
    ):
        (group / "pids.max").write_text(f"{used + left}\n")
        finding = found("threads", root=root, ranks=ranks)
        assert finding.level == level and finding.fact.startswith(f"{left} ")
    assert "--pids-limit" in finding.fix
    (group / "pids.max").write_text("max\n")
    assert found("threads", root=root, ranks=ranks).level == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_small_full_and_missing_shared_memory(root: Path) -> None:
    shm = root / "dev/shm"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "none", str(shm)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        assert found("shared memory", root=root).level == "ok"
        finding = found("shared memory", root=root, ranks=2)
        assert (
            finding.level == "warning" and "--shm-size" in finding.fix and "80 MiB" in finding.fact
        )
        (shm / "left").write_bytes(bytes(20 << 20))
        finding = found("shared memory", root=root)
        assert finding.level == "warning" and finding.fix.startswith(f"ls -l {shm}")
    finally:
        subprocess.run(["umount", str(shm)], check=True)
    shm.rmdir()
    assert found("shared memory", root=root).level == "error"


def test_a_container_with_less_memory(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    given = rng.randint(1 << 20, 1 << 29)
    monkeypatch.setattr(limits, "machine_memory", lambda: (given, given // 2))
    seen = Seen()
    limits._memory(seen)
    assert seen.findings[0].level == "note" and "the machine has" in seen.findings[0].fact

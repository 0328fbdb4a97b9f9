"""Disks: what is there, full, slow, read-only or without inodes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopcoder.doctor import disks
from loopcoder.doctor import thresholds as t
from loopcoder.doctor.disks import check_disk, check_readable


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t, "DISK_PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(disks.speed, "__defaults__", (1 << 20,))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 8 MiB and 200 inodes."""
    place = tmp_path / "disk"
    place.mkdir()
    options = "size=8m,nr_inodes=200"
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fast(monkeypatch: pytest.MonkeyPatch, written: float = 1e9, read: float = 1e9) -> None:
    monkeypatch.setattr(disks, "speed", lambda _: (written, read))


def test_a_folder_that_is_not_there_is_measured_where_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = check_disk("run_dir", str(tmp_path / "a" / "b")).findings
    assert finding.check == "disk of run_dir" and f"{tmp_path}:" in finding.fact
    assert finding.value is not None and finding.value > 0 and finding.unit == "MB/s written"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slow", ["written", "read"])
def test_a_slow_disk_at_the_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    fast(monkeypatch, **{slow: t.DISK_BYTES_PER_S})
    assert check_disk("run_dir", str(tmp_path)).findings[0].level == "ok"
    fast(monkeypatch, **{slow: t.DISK_BYTES_PER_S - 1})
    (finding,) = check_disk("run_dir", str(tmp_path)).findings
    assert finding.level == "warning" and finding.fix.startswith("run_dir= on a faster disk")


def test_a_slow_disk_is_fast_enough_for_a_small_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch, written=1e6)
    enough = int(1e6 * t.SAVES_S)
    for needed, level in ((enough - 10**6, "note"), (enough, "warning")):
        (finding,) = check_disk("run_dir", str(tmp_path), needed_bytes=needed).findings
        assert finding.level == level and f"take {needed / 1e6:.0f} s to write" in finding.why


def test_a_disk_without_room_or_inodes(disk: Path, rng: random.Random) -> None:
    room, inodes, speed = check_disk("run_dir", str(disk), needed_bytes=10**9).findings
    assert room.level == "warning" and "checkpoints that are kept come to 1.0 GB" in room.why
    assert inodes.level == "warning" and "inodes are free" in inodes.fact
    assert speed.check == "disk of run_dir" and speed.value is not None
    for number in range(os.statvfs(disk).f_favail):
        (disk / str(number)).touch()
    found = check_disk("run_dir", str(disk)).findings
    assert "error" in [f.level for f in found if "inodes" in f.fact]
    for number in range(50):
        (disk / str(number)).unlink()
    (disk / "large").write_bytes(bytes(rng.randint((6 << 20) + 1, 7 << 20)))
    (room, _) = check_disk("run_dir", str(disk)).findings
    assert room.level == "error" and "free space there" in room.fix


def test_what_is_no_disk() -> None:
    """It has no room either, and more of it would not help."""
    (finding,) = check_disk("run_dir", "/proc/none/run").findings
    assert finding.level == "error" and "is of no disk" in finding.fact


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: Path) -> tuple[float, float]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disks, "speed", refuse)
    (finding,) = check_disk("run_dir", str(tmp_path)).findings
    assert finding.level == "error" and os.strerror(number) in finding.fact
    (finding,) = check_disk("data.build.cache_dir", str(tmp_path), must_write=False).findings
    assert finding.level == ("error" if number == errno.EDQUOT else "note")


def test_a_disk_whose_server_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(disks.os, "statvfs", stale)
    for seen in (check_disk("run_dir", str(tmp_path)), check_readable("data.path", str(tmp_path))):
        (finding,) = seen.findings
        assert finding.level == "error" and "tale file handle" in finding.fact


def test_a_folder_that_is_read(tmp_path: Path) -> None:
    assert check_readable("data.path", str(tmp_path)).findings[0].level == "ok"

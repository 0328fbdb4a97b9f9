"""What a run deletes of its checkpoints, and that it never fails on what it can't delete."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint import pruning, save
from loopcoder.checkpoint.pruning import prune
from loopcoder.config.schema import CheckpointConfig
from tests.checkpoint.test_format import damaged, write


def steps(found: Any) -> list[int]:
    return [c.step for c in found]


def kept(run_dir: Path, keep: int | None, spared: int | None = None, **fields: Any) -> list[int]:
    """Prune, and return the steps that were deleted; nothing may stay that should go."""
    pruned = prune(run_dir / "checkpoints", CheckpointConfig(keep=keep, **fields), spared)
    assert pruned.notes == {}
    return steps(pruned.deleted)


def test_the_newest_stay(tmp_path: Path, seed: int) -> None:
    for step in (5, 40, 10, 30):
        write(tmp_path, step, seed)
    killed = write(tmp_path, 1, seed, manifest=False)
    assert kept(tmp_path, None) == kept(tmp_path, 4) == kept(tmp_path, 9) == []
    assert kept(tmp_path, 2) == [5, 10]
    folder = tmp_path / "checkpoints"
    assert steps(layout.complete(folder)) == [30, 40]
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["step_00000001", "step_00000030", "step_00000040"]
    assert killed.path.exists()  # not a checkpoint: not counted, not touched


def test_a_step_and_multiples_are_spared(tmp_path: Path, seed: int) -> None:
    for step in (5, 40, 10, 30, 20):
        write(tmp_path, step, seed)
    assert kept(tmp_path, 2, spared=10) == [5, 20]
    assert kept(tmp_path, 2, spared=11) == [10]
    for step in (50, 55, 60, 65):
        write(tmp_path, step, seed)
    assert kept(tmp_path, 1, keep_every=20) == [30, 50, 55]
    assert steps(layout.complete(tmp_path / "checkpoints")) == [40, 60, 65]


def test_what_could_not_be_set_aside_takes_the_place_of_nothing(tmp_path: Path, seed: int) -> None:
    """Of a run that went back: the checkpoint that it has just saved stays, the later one too."""
    for step in (100, 110, 300):
        write(tmp_path, step, seed)
    pruned = prune(tmp_path / "checkpoints", CheckpointConfig(keep=1), newest=110)
    assert (steps(pruned.deleted), pruned.notes) == ([100], {})


def test_killed_halfway_leaves_nothing_that_looks_complete(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, seed)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", killed)
        with pytest.raises(KeyboardInterrupt):
            kept(tmp_path, 1)
    remaining = layout.complete(tmp_path / "checkpoints")
    assert steps(remaining) == [2, 3]  # the oldest goes first
    assert [damaged(c, "hash") for c in remaining] == [[None], [None]]
    assert kept(tmp_path, 1) == [2]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def linked(path: Path) -> None:
    path.rename(path.parents[1] / "archive")
    path.symlink_to(path.parents[1] / "archive")


def linked_elsewhere(path: Path) -> None:
    """The link leads to a checkpoint of another run."""
    other = path.parents[1] / "other" / "checkpoints" / path.name
    other.parent.mkdir(parents=True)
    path.rename(other)
    path.symlink_to(other)


def protected(path: Path) -> None:
    path.chmod(0o555)


def with_a_folder(path: Path) -> None:
    (path / "mine").mkdir()
    (path / "mine" / "notes.txt").write_text("of the user")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (linked, "it is a link"),
        (linked_elsewhere, "it is a link"),
        (protected, "write-protected"),
        (with_a_folder, "holds the folder mine"),
    ],
)
def test_what_is_not_to_be_deleted_stays(
    tmp_path: Path, seed: int, change: Callable[[Path], None], says: str
) -> None:
    milestone = write(tmp_path, 1, seed)
    for step in (2, 3):
        write(tmp_path, step, seed)
    before = {p.name: p.read_bytes() for p in milestone.path.iterdir()}
    change(milestone.path)
    pruned = prune(tmp_path / "checkpoints", CheckpointConfig(keep=1))
    assert steps(pruned.deleted) == [2]
    assert list(pruned.notes) == [milestone.path] and says in pruned.notes[milestone.path]
    assert {p.name: p.read_bytes() for p in milestone.path.iterdir() if p.is_file()} == before
    assert steps(layout.complete(tmp_path / "checkpoints")) == [1, 3]


def test_files_that_are_links_go_and_what_they_lead_to_stays(tmp_path: Path, seed: int) -> None:
    old, _ = write(tmp_path, 1, seed), write(tmp_path, 2, seed)
    archive = tmp_path / "archive"
    archive.mkdir()
    for file in old.path.iterdir():
        moved = file.rename(archive / file.name)
        file.symlink_to(moved)
    before = {p.name: p.read_bytes() for p in archive.iterdir()}
    assert kept(tmp_path, 1) == [1]
    assert {p.name: p.read_bytes() for p in archive.iterdir()} == before


@pytest.mark.parametrize("failing", ["rename", "unlink", "rmdir"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY])
def test_what_the_system_does_not_let_go_stays(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, failing: str, number: int
) -> None:
    """Of another owner, on a disk that is read-only, in use."""
    for step in (1, 2, 3):
        write(tmp_path, step, seed)
    really = getattr(Path, failing)

    def fails(path: Path, *args: Any, **kwargs: Any) -> Any:
        if "step_00000001" in str(path) and (failing != "rename" or path.suffix == ""):
            raise OSError(number, os.strerror(number), str(path))
        return really(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, fails)
        pruned = prune(tmp_path / "checkpoints", CheckpointConfig(keep=1))
    assert steps(pruned.deleted) == [2]
    ((path, why),) = pruned.notes.items()
    assert path.name == "step_00000001" and os.strerror(number) in why
    left = layout.complete(tmp_path / "checkpoints")
    # a folder that is empty by then can't be one
    assert steps(left) == ([3] if failing == "rmdir" else [1, 3])
    assert [damaged(c, "hash") for c in left] == [[None]] * len(left)
    prune(tmp_path / "checkpoints", CheckpointConfig(keep=1))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_what_vanishes_meanwhile_is_no_error(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, seed)
    found = layout.complete(tmp_path / "checkpoints")
    layout.step_folder(tmp_path, 1).rename(tmp_path / "moved")
    monkeypatch.setattr("loopcoder.checkpoint.pruning.complete", lambda _: found)
    assert kept(tmp_path, 1) == [1, 2]


def test_a_checkpoint_that_cannot_be_looked_at_is_none(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        write(tmp_path, step, seed)
    really = Path.is_file

    def denied(path: Path) -> bool:
        if "step_00000001" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path)

    monkeypatch.setattr(Path, "is_file", denied)
    assert steps(layout.complete(tmp_path / "checkpoints")) == [2]


@pytest.fixture
def mounted(tmp_path: Path, seed: int) -> Iterator[Path]:
    """A checkpoint that is a mounted disk."""
    path = layout.step_folder(tmp_path, 1)
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if os.getuid() != 0 or done.returncode != 0:
        pytest.skip("mounting a file system needs root")
    (path / layout.MANIFEST).write_text("{}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_mounted_disk_stays(tmp_path: Path, seed: int, mounted: Path) -> None:
    write(tmp_path, 2, seed)
    pruned = prune(tmp_path / "checkpoints", CheckpointConfig(keep=1))
    assert (mounted / layout.MANIFEST).exists() and not pruned.deleted
    assert "mounted" in pruned.notes[mounted]


def test_saving_over_a_link_or_a_checkpoint_keeps_it(tmp_path: Path, seed: int) -> None:
    for change in (linked, lambda _: None):
        checkpoint = write(tmp_path, 7, seed)
        change(checkpoint.path)
        before = {p.name: p.read_bytes() for p in checkpoint.path.iterdir()}
        save._fresh(checkpoint.path)
        assert checkpoint.path.is_dir() and not any(checkpoint.path.iterdir())
        checkpoint.path.rmdir()
        (aside,) = checkpoint.path.parent.iterdir()
        assert {p.name: p.read_bytes() for p in aside.iterdir()} == before
        aside.rename(tmp_path / f"seen{change is linked}")


def test_beside_the_steps_nothing_waits_for_what_is_deleted(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24.7 GB took seven seconds to delete, in which training stood still."""
    for step in (10, 20):
        write(tmp_path, step, seed)
    go_on, events = threading.Event(), []

    def slowly(path: Path) -> str | None:
        assert go_on.wait(60)
        return remove(path)

    remove = pruning._remove
    monkeypatch.setattr(pruning, "_remove", slowly)
    config = CheckpointConfig(keep=1, async_save=True)
    at_work = pruning.Pruning(config, lambda kind, **fields: events.append((kind, fields["path"])))
    at_work.begin(tmp_path / "checkpoints", None, 20, ())
    at_work.poll()
    assert events == []
    go_on.set()
    at_work.finish()
    gone = tmp_path / "checkpoints" / "step_00000010"
    assert events == [("checkpoint_deleted", str(gone))]
    assert not gone.exists() and not list(gone.parent.glob("*.deleting"))
    at_work.begin(tmp_path / "checkpoints", None, 20, ())
    at_work.finish()
    assert len(events) == 1

"""A process that ends before any of its operations on the files of a run: nothing is lost, nothing
half done counts, and the same command again comes to where it would have come."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import own_checkpoint, set_aside
from loopcoder.checkpoint.pruning import finish_deleting, prune
from loopcoder.checkpoint.rewind import REWINDS, go_back, last_before, rewinds_of, with_rewinds
from loopcoder.checkpoint.save import _fresh
from loopcoder.config.compose import save_config
from loopcoder.config.schema import CheckpointConfig
from loopcoder.metrics.writer import read_metrics, truncate_after
from loopcoder.storage.files import write_json
from tests.checkpoint.states import state_at
from tests.checkpoint.test_format import flip_a_bit, write
from tests.configs import small_config
from tests.storage.crashes import Disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def run_dir(tmp_path: Path, seed: int) -> Path:
    """A run with checkpoints of steps 2, 4, ..., 10."""
    for step in (2, 4, 6, 8, 10):
        write(tmp_path / "run", step, seed)
    return tmp_path / "run"


@pytest.fixture
def put_back(run_dir: Path, tmp_path: Path) -> Callable[[], None]:
    """Make the run's folder what it was when this was asked for first."""
    original = tmp_path / "original"

    def prepare() -> None:
        if not original.exists():
            shutil.copytree(run_dir, original)
        shutil.rmtree(run_dir)
        shutil.copytree(original, run_dir)

    return prepare


def steps(run_dir: Path) -> list[int]:
    return [c.step for c in layout.complete(run_dir / "checkpoints")]


def contents(run_dir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def assert_whole(run_dir: Path) -> None:
    """What counts as a checkpoint has all of its bytes."""
    for checkpoint in layout.complete(run_dir / "checkpoints"):
        assert list(layout.faults(checkpoint, "hash")) == []


def test_a_file_has_its_old_content_or_its_new_one(
    disk: Disk, tmp_path: Path, rng: random.Random
) -> None:
    path, old, new = tmp_path / "state.json", rng.random(), [rng.random()] * rng.randint(1, 2000)
    seen = []
    for crash in disk.crashes(lambda: write_json(path, old), lambda: write_json(path, new)):
        seen.append(crash)
        assert json.loads(path.read_text()) == old
        write_json(path, new)
        assert json.loads(path.read_text()) == new
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert [crash.split()[0] for crash in seen] == ["open", "replace", "replace"]


def test_a_curve_is_cut_or_it_is_not(disk: Disk, tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": rng.random()}) + "\n" for i in range(1, 9)]
    seen = 0
    for _ in disk.crashes(
        lambda: path.write_text("".join(lines) + '{"st'), lambda: truncate_after(path, 5)
    ):
        seen += 1
        assert [r["step"] for r in read_metrics(path)] == list(range(1, 9))
        truncate_after(path, 5)
        assert path.read_text() == "".join(lines[:5])
    assert seen == 3


@pytest.mark.parametrize("keep", [1, 2])
def test_pruning(disk: Disk, run_dir: Path, put_back: Callable[[], None], keep: int) -> None:
    config, folder = CheckpointConfig(keep=keep), run_dir / "checkpoints"
    before, seen = contents(run_dir), 0
    for crash in disk.crashes(put_back, lambda: prune(folder, config)):
        seen += 1
        assert steps(run_dir)[-keep:] == [2, 4, 6, 8, 10][-keep:], crash
        assert_whole(run_dir)
        prune(folder, config)
        left = contents(run_dir)
        assert left == {
            name: before[name] for name in left if int(name[17:25]) in steps(run_dir)
        }, crash
        assert [int(p.name[5:]) for p in sorted(folder.iterdir())] == steps(run_dir)
        assert len(steps(run_dir)) == keep
    assert seen == 8 * (5 - keep)  # of each a renaming, six files and the folder


def test_what_was_half_deleted_goes(
    disk: Disk, run_dir: Path, put_back: Callable[[], None]
) -> None:
    """Also of a run that was killed after its last save, which prunes no more."""
    folder = run_dir / "checkpoints"
    for crash in disk.crashes(put_back, lambda: prune(folder, CheckpointConfig(keep=1))):
        whole = steps(run_dir)
        assert finish_deleting(folder) == {}
        assert [int(p.name[5:]) for p in sorted(folder.iterdir())] == whole == steps(run_dir), crash


@pytest.mark.parametrize("asked", [{}, {"step": 4}])
def test_setting_aside(
    disk: Disk,
    run_dir: Path,
    put_back: Callable[[], None],
    asked: dict[str, int],
    rng: random.Random,
) -> None:
    """What is damaged, and what is later than the step that a run goes back to."""
    flip_a_bit(layout.step_folder(run_dir, 10) / "state.json", rng)
    config = CheckpointConfig(**asked)  # type: ignore[arg-type]

    def start() -> int:
        chosen = own_checkpoint(run_dir, config)
        assert chosen is not None
        set_aside(chosen, config, {})
        return chosen.step

    def names() -> list[str]:
        return sorted(p.name for p in (run_dir / "checkpoints").iterdir())

    put_back()
    expected_step, kept = start(), sorted(contents(run_dir).values())
    expected, seen = names(), 0
    for crash in disk.crashes(put_back, start):
        seen += 1
        assert start() == expected_step == asked.get("step", 8), crash
        assert names() == expected, crash
        assert sorted(contents(run_dir).values()) == kept
        assert own_checkpoint(run_dir, CheckpointConfig()) == own_checkpoint(run_dir, config)
        assert start() == expected_step
    assert seen == (6 if asked else 2)


def test_going_back(
    disk: Disk, run_dir: Path, put_back: Callable[[], None], rng: random.Random
) -> None:
    """Each crash leaves a run that has not gone back, or one that has."""
    config = small_config()
    for checkpoint in layout.complete(run_dir / "checkpoints"):
        save_config(config, checkpoint.path / layout.CONFIG)
    write_json(run_dir / REWINDS, [])
    position = state_at(11).position

    def back() -> None:
        checkpoint = last_before(run_dir, 7)
        assert checkpoint is not None and checkpoint.step == 6
        go_back(config, run_dir, checkpoint, position, "bad")

    seen = set()
    for crash in disk.crashes(put_back, back):
        has_gone_back = rewinds_of(run_dir) != []
        seen.add((steps(run_dir)[-1], has_gone_back))
        assert_whole_but_for_configs(run_dir)
        if has_gone_back:
            assert steps(run_dir)[-1] == 6, crash
        else:
            assert with_rewinds(config, run_dir) == config
            back()  # it comes to the same steps again
        (rewind,) = rewinds_of(run_dir)
        assert asdict(rewind) | {"to_step": 6, "skip_steps": 5, "sample": 48} == asdict(rewind)
        assert steps(run_dir) == [2, 4, 6]
        assert len(list((run_dir / "checkpoints").glob("*.undone"))) == 2
        assert not list(run_dir.glob("*.tmp"))
    assert seen == {(10, False), (8, False), (6, False)}


def assert_whole_but_for_configs(run_dir: Path) -> None:
    for checkpoint in layout.complete(run_dir / "checkpoints"):
        wrong = [f for f in layout.faults(checkpoint, "hash") if "config.yaml" not in f]
        assert wrong == []


@pytest.mark.parametrize("there", ["complete", "torn", "link"])
def test_a_folder_for_a_save(
    disk: Disk, run_dir: Path, put_back: Callable[[], None], there: str, tmp_path: Path
) -> None:
    """A complete checkpoint of the same step is kept under another name."""
    folder = layout.step_folder(run_dir, 10)
    if there == "torn":
        (folder / layout.MANIFEST).unlink()
    if there == "link":
        folder.rename(tmp_path / "elsewhere")

    def prepare() -> None:
        put_back()
        if there == "link":
            folder.symlink_to(tmp_path / "elsewhere")

    count = sum(there == "complete" or "step_00000010" not in name for name in contents(run_dir))
    seen = 0
    for crash in disk.crashes(prepare, lambda: _fresh(folder)):
        seen += 1
        assert steps(run_dir)[:4] == [2, 4, 6, 8], crash
        assert_whole(run_dir)
        _fresh(folder)
        assert list(folder.iterdir()) == [] and not folder.is_symlink()
        assert len(contents(run_dir)) == count, crash
        assert steps(run_dir) == [2, 4, 6, 8]
    assert seen >= 2
    assert there != "link" or len(list((tmp_path / "elsewhere").iterdir())) == 6

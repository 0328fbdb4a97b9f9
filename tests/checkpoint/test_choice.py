"""A run goes on from its newest checkpoint that is whole, or from one that is chosen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import SetAside
from loopcoder.checkpoint.start import Reached, Start, find_start, finished_at
from loopcoder.checkpoint.verify import report, verified
from loopcoder.errors import EXIT_BAD_INPUT, InputError
from tests.checkpoint.saved import save_small
from tests.checkpoint.test_format import write
from tests.configs import small_config


def choose(run_dir: Path, **asked: Any) -> tuple[int, list[SetAside]]:
    """Start as a run does; return the step and what was set aside."""
    config = small_config()
    config = replace(config, checkpoint=replace(config.checkpoint, **asked))
    start, aside = verified(find_start(config, run_dir), config)
    assert start is not None
    return start.checkpoint.step, aside


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in (run_dir / "checkpoints").glob("step_*"))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.fixture(scope="module")
def original(ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("original")
    save_small(run_dir, 1, 1, 2, 3)
    return run_dir


@pytest.fixture
def run_dir(original: Path, tmp_path: Path) -> Path:
    """A run with real checkpoints of steps 1, 2 and 3."""
    return shutil.copytree(original, tmp_path / "run")


@pytest.mark.parametrize(
    "file", ["__0_0.distcp", ".metadata", "metadata.json", "state.json", "config.yaml"]
)
@pytest.mark.parametrize("damage", [flipped, truncated, Path.unlink])
def test_a_damaged_one_is_set_aside_and_the_one_before_taken(
    run_dir: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(layout.step_folder(run_dir, 3) / file)
    step, (aside,) = choose(run_dir)
    assert step == 2
    assert file in aside.why and aside.kind == "damaged"
    assert names(run_dir) == ["step_00000001", "step_00000002", "step_00000003.damaged"]
    assert choose(run_dir) == (2, [])


@pytest.mark.parametrize("content", [b"", b'{"files', b'{"files": {"state.json": 3}}', b"[]"])
def test_a_damaged_manifest(run_dir: Path, content: bytes) -> None:
    (layout.step_folder(run_dir, 3) / layout.MANIFEST).write_bytes(content)
    step, (aside,) = choose(run_dir)
    assert step == 2 and layout.MANIFEST in aside.why


def test_several_are_damaged(run_dir: Path) -> None:
    truncated(layout.step_folder(run_dir, 3) / "state.json")
    flipped(layout.step_folder(run_dir, 2) / "__0_0.distcp")
    step, aside = choose(run_dir)
    assert step == 1 and [one.path.name for one in aside] == ["step_00000002", "step_00000003"]
    assert names(run_dir) == ["step_00000001", "step_00000002.damaged", "step_00000003.damaged"]


def test_none_is_whole(run_dir: Path) -> None:
    for step in (1, 2, 3):
        flipped(layout.step_folder(run_dir, step) / "__0_0.distcp")
    with pytest.raises(InputError) as raised:
        choose(run_dir)
    assert raised.value.exit_code == EXIT_BAD_INPUT
    listed = [problem.fact for problem in raised.value.problems]
    assert len(listed) == 3 and all("__0_0.distcp" in fact for fact in listed)
    assert names(run_dir) == ["step_00000001", "step_00000002", "step_00000003"]


def test_the_damaged_tensors_are_named(run_dir: Path) -> None:
    shard = layout.step_folder(run_dir, 3) / "__0_0.distcp"
    from loopcoder.checkpoint.unpickled import read_metadata

    found = read_metadata(layout.Checkpoint(shard.parent, 3)).storage_data
    index, info = next((i, s) for i, s in found.items() if "exp_avg_sq" in i.fqn)
    data = bytearray(shard.read_bytes())
    data[info.offset + info.length // 2] ^= 1
    shard.write_bytes(data)
    _, (aside,) = choose(run_dir)
    assert f"in it {index.fqn}" in aside.why and aside.why.count("exp_avg") == 1


def test_what_cannot_be_renamed_is_passed_over(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped(layout.step_folder(run_dir, 3) / "__0_0.distcp")

    def refused(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "rename", refused)
    for _ in range(2):
        step, (aside,) = choose(run_dir)
        assert step == 2 and aside.now is None
    said: list[str] = []
    events: list[dict[str, Any]] = []
    report(run_dir, [aside], lambda kind, **f: events.append({"kind": kind} | f), said.append)
    assert "step_00000003 is damaged and not used" in said[0] and "could not be renamed" in said[0]
    assert events[0]["kind"] == "checkpoint_set_aside" and events[0]["cause"] == "damaged"


def test_without_comparing_nothing_is_set_aside(run_dir: Path) -> None:
    flipped(layout.step_folder(run_dir, 3) / "__0_0.distcp")
    assert choose(run_dir, verify="none") == choose(run_dir, verify="size") == (3, [])


def test_that_of_another_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    other = layout.step_folder(run_dir, 3)
    flipped(other / "__0_0.distcp")
    with pytest.raises(InputError, match=r"__0_0\.distcp"):
        choose(tmp_path / "new", init_from=str(run_dir))
    assert other.is_dir()


def test_going_back_happens_once(run_dir: Path, seed: int) -> None:
    step, aside = choose(run_dir, step=1)
    assert step == 1 and [one.kind for one in aside] == ["later"] * 2
    assert names(run_dir) == ["step_00000001", "step_00000002.later", "step_00000003.later"]
    # the same command again goes on, as after a kill
    assert choose(run_dir, step=1) == (1, [])
    shutil.copytree(
        layout.step_folder(run_dir, 2).with_name("step_00000002.later"),
        layout.step_folder(run_dir, 2),
    )
    assert choose(run_dir, step=1) == (2, [])
    # a command without it, and then with it again
    assert choose(run_dir) == (2, [])
    step, (aside,) = choose(run_dir, step=1)
    assert step == 1 and aside.now is not None and aside.now.name == "step_00000002.later-1"


def test_going_back_to_what_is_not_there_or_damaged(run_dir: Path) -> None:
    with pytest.raises(InputError, match="has complete checkpoints of steps 1, 2 and 3"):
        choose(run_dir, step=7)
    with pytest.raises(InputError, match="new/checkpoints has no complete checkpoint"):
        choose(run_dir.with_name("new"), step=7)
    flipped(layout.step_folder(run_dir, 2) / "__0_0.distcp")
    truncated(layout.step_folder(run_dir, 1) / "state.json")
    for step, others in ((1, "2 and 3"), (2, "1 and 3")):
        with pytest.raises(InputError, match=f"step_0000000{step}") as raised:
            choose(run_dir, step=step)
        (problem,) = raised.value.problems
        assert problem.fix.endswith(f"has complete checkpoints of steps {others}")
    assert names(run_dir) == ["step_00000001", "step_00000002", "step_00000003"]


def test_state_is_looked_at_before_there_are_ranks(tmp_path: Path, seed: int) -> None:
    own = [write(tmp_path, step, seed) for step in (1, 2)]
    truncated(own[1].path / "state.json")
    assert find_start(small_config(), tmp_path) == Start(own[0], resumes=True)


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "state.json"])
@pytest.mark.parametrize("damage", [flipped, truncated, Path.unlink])
@pytest.mark.parametrize("level", ["hash", "size", "none"])
def test_a_finished_run_whose_last_checkpoint_is_damaged_is_not(
    run_dir: Path, file: str, damage: Callable[[Path], None], level: Any
) -> None:
    """As far as the sizes of shards say it, and the bytes of all else; it was said to be done."""
    config = small_config()
    config = replace(
        config,
        train=replace(config.train, max_steps=3),
        checkpoint=replace(config.checkpoint, verify=level),
    )
    trained = layout.find(run_dir).config()
    done = Reached(3, trained.train.max_steps, trained.checkpoint)
    assert finished_at(config, run_dir) == done
    damage(layout.step_folder(run_dir, 3) / file)
    if level == "none":
        if file != "state.json":
            assert finished_at(config, run_dir) == done
        return
    unseen = damage is flipped and (
        file.endswith("distcp") or (level, file) == ("size", ".metadata")
    )
    assert finished_at(config, run_dir) == (done if unseen else None)
    if unseen:
        return
    start = find_start(config, run_dir, sizes=True)
    assert start is not None and start.checkpoint.step == 2
    start, (aside,) = verified(start, config)
    assert start is not None and start.checkpoint.step == 2 and file in aside.why
    assert names(run_dir)[-1] == "step_00000003.damaged"

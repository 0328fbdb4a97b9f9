"""Where a run stood before a step: by the nearest checkpoint, with the config of that time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.history import stand_before
from loopcoder.config.compose import changed, compose, save_config
from loopcoder.config.schema import Config
from loopcoder.data.sampler import Position, position_at
from loopcoder.errors import InputError
from tests.checkpoint.states import state_at


def saved(run_dir: Path, config: Config, position: Position) -> Path:
    """Write a checkpoint as a run of this config leaves it at a position."""
    folder = layout.step_folder(run_dir, position.step)
    folder.mkdir(parents=True)
    state = state_at(position.step, position=position)
    (folder / layout.STATE).write_text(json.dumps(state.to_json()))
    (folder / layout.MANIFEST).write_text('{"files": {}}')
    save_config(config, folder / layout.CONFIG)
    return folder


def test_a_run_without_checkpoints_begins_at_its_data(tmp_path: Path) -> None:
    config = compose(["train.max_steps=50", "train.global_batch_size=8"])
    save_config(config, tmp_path / layout.CONFIG)
    stand = stand_before(tmp_path, 7)
    assert stand.position == position_at(config, Position(), 6)
    assert (stand.position.step, stand.position.samples, stand.notes) == (6, 48, [])


def test_each_step_has_the_config_that_it_was_trained_with(tmp_path: Path) -> None:
    small, large = compose(["train.global_batch_size=8"]), compose(["train.global_batch_size=16"])
    at_10 = position_at(small, Position(), 10)
    at_20 = position_at(large, at_10, 20)
    saved(tmp_path, small, at_10)
    saved(tmp_path, large, at_20)
    save_config(small, tmp_path / layout.CONFIG)  # of the newest command

    def samples(step: int) -> tuple[int, int]:
        stand = stand_before(tmp_path, step)
        assert stand.notes == []
        return stand.position.samples, stand.config.train.global_batch_size

    assert samples(1) == (0, 8) and samples(10) == (72, 8)
    assert samples(11) == (80, 16) and samples(20) == (80 + 9 * 16, 16)
    assert samples(21) == (240, 8) and samples(23) == (256, 8)


def test_a_change_that_no_checkpoint_dates_is_said(tmp_path: Path) -> None:
    small, large = compose(["train.global_batch_size=8"]), compose(["train.global_batch_size=16"])
    at_10 = position_at(small, Position(), 10)
    saved(tmp_path, large, position_at(large, at_10, 20))  # that of step 10 was pruned
    (note,) = stand_before(tmp_path, 5).notes
    assert "between step 0 and 20" in note
    assert stand_before(tmp_path, 21, large).notes == []


@pytest.mark.parametrize("keeps", [True, False])
def test_a_branch_begins_where_it_left(tmp_path: Path, keeps: bool) -> None:
    config = compose(["train.global_batch_size=8"])
    origin = saved(tmp_path / "origin", config, position_at(config, Position(), 10))
    wanted = [f"checkpoint.init_from={origin}", f"checkpoint.init_position={keeps}".lower()]
    branch = tmp_path / "branch"
    branch.mkdir()
    save_config(changed(config, wanted), branch / layout.CONFIG)
    assert stand_before(branch, 12).position == position_at(config, Position(), 11)
    if not keeps:
        assert stand_before(branch, 10).position.step == 9
        return
    with pytest.raises(InputError, match="began behind step 10") as error:
        stand_before(branch, 10)
    assert f"run_dir={tmp_path / 'origin'}" in error.value.problems[0].fix

"""A run comes back from its store: the newest copy that is whole and that it has not left."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.choice import own_checkpoint
from loopcoder.checkpoint.copies.early import bring_back
from loopcoder.checkpoint.copies.fetching import fetch_together, forget_later
from loopcoder.checkpoint.copies.owner import check_owner, claim
from loopcoder.checkpoint.copies.stored import copies, copy_of, open_store
from loopcoder.checkpoint.rewind import REWINDS, Rewind
from loopcoder.config.schema import CheckpointConfig
from loopcoder.data.sampler import Skipped
from loopcoder.errors import InputError, LoopcoderError, Unreachable
from loopcoder.storage.remote import Store
from tests.checkpoint.states import state_at
from tests.checkpoint.test_choice import flipped, truncated
from tests.checkpoint.test_format import write
from tests.checkpoint.test_sending import sent
from tests.data.stores import files_of

pytestmark = pytest.mark.usefixtures("ranks")
SHARD, STEP_3 = "__1_0.distcp", "checkpoints/step_00000003"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def original(tmp_path: Path, url: str, seed: int) -> Path:
    """A run with copies of steps 1, 2 and 3."""
    run_dir = tmp_path / "elsewhere" / "run"
    for step in (1, 2, 3):
        write(run_dir, step, seed)
    (run_dir / "metrics.jsonl").write_text('{"step": 3}\n')
    (run_dir / "run.json").write_text('{"id": "1", "name": "run"}')
    open_store(url).write("run.json", (run_dir / "run.json").read_bytes())
    sent(run_dir, url, 1, 2, 3)
    return run_dir


@pytest.fixture
def run_dir(original: Path, tmp_path: Path) -> Path:
    """Its folder, lost."""
    return tmp_path / "run"


def comes_back(run_dir: Path, url: str, **asked: Any) -> tuple[list[int], str]:
    """Start as a run does; return the complete checkpoints, and what was said."""
    config = CheckpointConfig(store=url, **asked)
    run_dir.mkdir(parents=True, exist_ok=True)
    is_coming = bring_back(config, run_dir, print, decides=True)
    early = own_checkpoint(run_dir, config)
    said = "\n".join(fetch_together(config, run_dir, print))
    now = own_checkpoint(run_dir, config)
    if is_coming:
        assert early is not None
    assert not list(run_dir.glob("checkpoints/*.part"))
    assert now is None or now.path.suffix == ""
    return [c.step for c in layout.complete(run_dir / "checkpoints")], said


def test_a_lost_folder_comes_back_with_its_newest_checkpoint(
    original: Path, run_dir: Path, url: str
) -> None:
    steps, said = comes_back(run_dir, url)
    assert steps == [3] and "fetching step 3" in said
    there, before = files_of(run_dir), files_of(original)
    for files in (there, before):
        assert json.loads(files.pop("run.json"))["id"] == "1"
    assert there == {n: c for n, c in before.items() if "_00000003" in n or "/" not in n}
    assert comes_back(run_dir, url) == ([3], "")  # nothing is newer


def test_what_came_survives_a_power_cut(
    run_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are on the disk before they have their names, and the folder before it has its own."""
    theirs, synced = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        theirs(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    comes_back(run_dir, url)
    part = str(run_dir / STEP_3) + ".part"
    assert any(name.startswith(f"{run_dir}/.metrics.jsonl.") for name in synced)
    last = max(n for n, name in enumerate(synced) if name.startswith(f"{part}/"))
    assert synced[last + 1 :][:1] == [part] and str(run_dir) in synced


def test_each_of_several_processes_fetches_what_its_start_needs(run_dir: Path, url: str) -> None:
    """At once, as those that a launcher started on several nodes."""
    asked = CheckpointConfig(store=url)
    run_dir.mkdir()
    with ThreadPoolExecutor(4) as pool:
        coming = pool.map(lambda n: bring_back(asked, run_dir, print, decides=n == 0), range(4))
        assert list(coming) == [True] * 4
    early = own_checkpoint(run_dir, asked)
    assert early is not None and early.step == early.state().step == 3
    assert layout.complete(run_dir / "checkpoints") == []
    (run_dir / "corpus.json").touch()
    assert not bring_back(asked, run_dir, print, decides=False)  # it need not look


def test_a_folder_that_has_fallen_behind_keeps_its_own(run_dir: Path, url: str, seed: int) -> None:
    write(run_dir, 2, seed)
    (run_dir / "run.json").write_text('{"id": "1", "name": "run"}')
    (run_dir / "metrics.jsonl").write_text("own\n")
    assert comes_back(run_dir, url)[0] == [2, 3]
    assert (run_dir / "metrics.jsonl").read_text() == "own\n"


@pytest.mark.parametrize("damage", [flipped, truncated, Path.unlink])
@pytest.mark.parametrize("name", [SHARD, "state.json", "manifest.json", "config.yaml"])
def test_a_damaged_copy_is_named_and_the_next_newest_is_used(
    run_dir: Path, url: str, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "store" / STEP_3 / name)
    steps, said = comes_back(run_dir, url)
    assert steps == [2]
    if (name, damage) != ("manifest.json", Path.unlink):
        assert f"{STEP_3}/{name}" in said
        store = open_store(url)
        assert copy_of(store, 3).manifest() is None  # it is not fetched again
        assert "manifest.json.damaged" in copy_of(store, 3).store.names()


def test_a_download_that_is_killed_is_no_checkpoint_and_goes_on(
    run_dir: Path, url: str, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every file, and in its middle."""
    theirs, left = Store.pieces, [0]

    def pieces(self: Store, name: str, start: int, size: int, *args: Any) -> list[bytes]:
        left[0] -= 1
        if left[0] < 0:
            path = run_dir / (STEP_3 + ".part") / name
            path.write_bytes(theirs(self, name, start, size, *args)[0][: size // 2])
            raise Unreachable.of("killed", "", "")
        return theirs(self, name, start, size, *args)

    monkeypatch.setattr(Store, "pieces", pieces)
    run_dir.mkdir()
    asked, kills = CheckpointConfig(store=url), 0
    while True:
        left[0] = 1
        try:
            fetch_together(asked, run_dir, print)
            break
        except LoopcoderError:
            kills += 1
        assert layout.complete(run_dir / "checkpoints") == []
    assert kills == 2  # three shards, of which each try fetches one
    here = files_of(run_dir / STEP_3)
    assert here == files_of(original / STEP_3)


@pytest.mark.parametrize("verify", ["hash", "none"])
@pytest.mark.parametrize("early", [True, False])
def test_what_came_in_part_does_not_count_when_the_store_is_away(
    run_dir: Path,
    url: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    verify: Literal["hash", "none"],
    early: bool,
) -> None:
    write(run_dir, 2, seed)
    (run_dir / "run.json").write_text('{"id": "1", "name": "run"}')
    asked = CheckpointConfig(store=url, verify=verify)
    assert bring_back(asked, run_dir, print, decides=True)  # and the start ends here
    shard = run_dir / (STEP_3 + ".part") / SHARD
    shard.write_bytes(b"half of it")

    def found(*_: Any) -> None:
        raise Unreachable.of("the server is gone", "", "")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "found", found)
        if early:
            assert not bring_back(asked, run_dir, print, decides=True)
        else:
            fetch_together(asked, run_dir, print)
        own = own_checkpoint(run_dir, asked)
        assert own is not None and (own.step, own.path.suffix) == (2, "")
    assert shard.exists()  # what has come need not come again
    assert comes_back(run_dir, url)[0] == [2, 3]


def test_what_is_asked_for_is_honoured(run_dir: Path, url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"resume=never, but .*step_00000003 is a copy"):
        comes_back(run_dir, url, resume="never")
    assert files_of(run_dir) == {}  # nothing of the other run's came
    assert comes_back(run_dir, url, resume="require")[0] == [3]
    empty = f"file://{tmp_path}/empty"
    assert comes_back(tmp_path / "new", empty, resume="never")[0] == []
    with pytest.raises(InputError, match=r"resume=require, but neither .* nor .*empty"):
        comes_back(tmp_path / "new", empty, resume="require")


def test_an_older_step_comes_from_the_store_and_later_ones_do_not_come_back(
    run_dir: Path, url: str
) -> None:
    comes_back(run_dir, url)
    assert comes_back(run_dir, url, step=2)[0] == [2, 3]
    assert all(c.manifest() for c in copies(open_store(url)))  # the start may yet be refused
    (said,) = forget_later(CheckpointConfig(store=url, step=2), run_dir)
    assert "step_00000003 is set aside there (later)" in said
    assert [c.manifest() is None for c in copies(open_store(url))] == [False, False, True]
    shutil.rmtree(run_dir)
    assert comes_back(run_dir, url)[0] == [2]
    with pytest.raises(InputError, match="step=7, and neither ") as error:
        comes_back(run_dir, url, step=7)
    assert "the complete ones: 1, 2" in str(error.value)


def test_what_the_folder_has_set_aside_does_not_come_back(run_dir: Path, url: str) -> None:
    comes_back(run_dir, url)
    folder = run_dir / STEP_3
    folder.rename(folder.with_name(folder.name + ".damaged"))
    steps, said = comes_back(run_dir, url)
    assert steps == [2] and "step_00000003.damaged" in said
    shutil.rmtree(folder.with_name(folder.name + ".damaged"))
    assert comes_back(run_dir, url)[0] == [2, 3]


def rewind(to_step: int, from_step: int, skip_steps: int) -> Rewind:
    return Rewind(to_step, from_step, skip_steps, 0, 8 * to_step, 8 * skip_steps, "spike", "now")


def test_what_a_run_went_back_from_does_not_come_back(
    run_dir: Path, url: str, seed: int, original: Path
) -> None:
    """Whatever its folder still has; what was saved after it went back does."""
    (original / REWINDS).write_text(json.dumps([asdict(rewind(1, 3, 2))]))
    sent(original, url, 3, 2)  # nothing to send: the copies are complete
    write(original, 4, seed)
    state = state_at(4)
    skipped = replace(state.position, skipped=(Skipped(2, 2, 0, 8, 16),))
    state_file = original / "checkpoints/step_00000004/state.json"
    state_file.write_text(json.dumps(replace(state, position=skipped).to_json()))
    from tests.checkpoint.saved import mend_manifest

    mend_manifest(state_file.parent)
    sent(original, url, 4)
    assert comes_back(run_dir, url)[0] == [4]
    shutil.rmtree(run_dir)
    copy_of(open_store(url), 4).remove()
    steps, said = comes_back(run_dir, url)
    assert steps == [1] and "went back from step 3 to 1" in said
    assert [c.step for c in copies(open_store(url)) if c.manifest()] == [1]


def test_the_copies_of_another_run_are_not_taken(
    run_dir: Path, url: str, tmp_path: Path, seed: int
) -> None:
    other = tmp_path / "other"
    with pytest.raises(
        InputError, match=r"has the copies of another run, run, which .*other is not"
    ):
        comes_back(other, url)
    assert comes_back(other, url, resume="require")[0] == [3]
    own = tmp_path / "again" / "run"
    write(own, 1, seed + 1)  # it has never been copied there
    with pytest.raises(InputError, match="another run"):
        comes_back(own, url)


@pytest.mark.parametrize("left", [None, '{"x', "[]"])
def test_a_run_whose_name_is_lost_is_known_by_its_checkpoints(
    original: Path, url: str, left: str | None
) -> None:
    name = original / "run.json"
    before = json.loads(name.read_bytes())
    name.unlink() if left is None else name.write_text(left)
    asked = CheckpointConfig(store=url)
    check_owner(open_store(url), original, asked)
    claim(open_store(url), original)
    assert json.loads(name.read_bytes()) == before | {"path": str(original)}


def test_a_manifest_that_names_files_elsewhere_is_refused(
    run_dir: Path, url: str, tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "store" / STEP_3 / layout.MANIFEST
    manifest = json.loads(path.read_text())
    name = rng.choice(["../../../planted", "/tmp/planted", "..", "a/b"])
    manifest["files"][name] = manifest["files"][SHARD]
    path.write_text(json.dumps(manifest))
    steps, said = comes_back(run_dir, url)
    assert steps == [2] and name in said and not (tmp_path / "planted").exists()

"""A store has the copies of one run, from one folder, sent by one start of it."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies import owner, sending
from loopcoder.checkpoint.copies.copying import Copies
from loopcoder.checkpoint.copies.fetching import fetch_together
from loopcoder.checkpoint.copies.lacking import copy_rest
from loopcoder.checkpoint.copies.owner import Hold, NotOurs
from loopcoder.checkpoint.copies.stored import open_store
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import Unreachable
from loopcoder.storage.remote import Store
from tests.checkpoint.test_format import write
from tests.checkpoint.test_sending import whole

pytestmark = pytest.mark.usefixtures("ranks")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(sending, "WHILE_TRAINING", (0.001,))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


class Run:
    """What a run does with its store."""

    def __init__(self, run_dir: Path, url: str):
        self.run_dir, self.asked = run_dir, CheckpointConfig(store=url)
        run_dir.mkdir(exist_ok=True)

    def looks(self) -> None:
        """Before its ranks build anything."""
        fetch_together(self.asked, self.run_dir, print)

    def begins(self) -> None:
        """Before its first step."""
        self.copies = Copies(self.asked, self.run_dir, lambda kind, **_: None)
        own = layout.complete(self.run_dir / "checkpoints")
        self.copies.make_up(own[-1].step if own else 0)

    def trains(self, step: int, seed: int) -> None:
        write(self.run_dir, step, seed)
        self.copies.saved(step)
        self.copies.finish(lambda: None, lambda: False)

    def starts(self, step: int, seed: int) -> None:
        self.looks()
        self.begins()
        self.trains(step, seed)


def test_a_copied_folder_is_another_run(tmp_path: Path, url: str, seed: int) -> None:
    Run(tmp_path / "run", url).starts(1, seed)
    copy = Run(shutil.copytree(tmp_path / "run", tmp_path / "copy"), url)
    with pytest.raises(NotOurs) as error:
        copy.starts(2, seed)
    assert f"{tmp_path}/copy is a copy of {tmp_path}/run, or that of this one" in str(error.value)
    assert "fix: checkpoint.store=ANOTHER" in str(error.value)
    write(copy.run_dir, 2, seed)
    with pytest.raises(NotOurs):  # nor where it has nothing left to train
        list(copy_rest(copy.asked, copy.run_dir, print, print, None))
    assert whole(tmp_path / "run", url) == [1]
    (tmp_path / "run").rename(tmp_path / "moved")
    Run(tmp_path / "moved", url).starts(2, seed)
    with pytest.raises(NotOurs, match=f"is a copy of {tmp_path}/moved"):
        copy.looks()  # of which its own file does not know
    Run(tmp_path / "moved", url).starts(3, seed)
    (tmp_path / "moved").rename(tmp_path / "run")
    Run(copy.run_dir, f"{url}-of-the-copy").starts(4, seed + 1)
    with pytest.raises(NotOurs, match="has the copies of another run"):
        copy.looks()  # it has a name of its own by now
    assert whole(tmp_path / "run", url) == [1, 2, 3]


def test_a_copy_goes_on_in_place_of_what_was_removed(tmp_path: Path, url: str, seed: int) -> None:
    """As one that was moved to another disk."""
    Run(tmp_path / "run", url).starts(1, seed)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    Run(tmp_path / "copy", url).starts(2, seed)
    assert whole(tmp_path / "copy", url) == [1, 2]


@pytest.mark.parametrize("seen_at_both", [False, True])
def test_a_folder_that_moved_or_is_mounted_elsewhere_is_the_same_run(
    tmp_path: Path, url: str, seed: int, monkeypatch: pytest.MonkeyPatch, seen_at_both: bool
) -> None:
    first, there = tmp_path / "a" / "run", tmp_path / "b" / "other-name"
    first.parent.mkdir()
    Run(first, url).starts(1, seed)
    if seen_at_both:  # a path that does not resolve to the other, as a second mount
        there.parent.symlink_to(first.parent)
        there = there.parent / "run"
        monkeypatch.setattr(Path, "resolve", lambda self, *_: Path(str(self)))
    else:
        there.parent.mkdir()
        first.rename(there)
    for step, folder in ((2, there), (3, there), (4, first if seen_at_both else there)):
        Run(folder, url).starts(step, seed)
    assert whole(there, url) == [1, 2, 3, 4]


def test_of_two_runs_that_start_at_once_one_refuses(
    tmp_path: Path, url: str, seed: int, rng: random.Random
) -> None:
    """In whatever order they look, take the store and save."""
    runs = [Run(tmp_path / name, url) for name in ("one", "two")]
    todo: dict[Run, list[Callable[[], None]]] = {}
    for number, run in enumerate(runs):
        write(run.run_dir, 1, seed + number)
        todo[run] = [run.looks, run.begins, partial(run.trains, 2, seed + number)]
    if rng.random() < 0.5:  # before either has a copy there
        for run in runs:
            todo[run].pop(0)()
    refused = set()
    while any(todo.values()):
        run = rng.choice([r for r, left in todo.items() if left])
        try:
            todo[run].pop(0)()
        except NotOurs as error:
            assert "fix: checkpoint.store=ANOTHER" in str(error)
            refused.add(run)
            todo[run].clear()
    assert len(refused) == 1
    (left,) = set(runs) - refused
    assert whole(left.run_dir, url) == [1, 2]
    theirs = json.loads((left.run_dir / "run.json").read_bytes())
    assert json.loads(open_store(url).read("run.json"))["id"] == theirs["id"]


def test_a_start_that_another_start_has_replaced_sends_no_more(
    tmp_path: Path, url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process on a node that was cut off, or one in a folder that was copied elsewhere."""
    old = Run(tmp_path / "run", url)
    old.starts(1, seed)
    new = Run(shutil.copytree(tmp_path / "run", tmp_path / "elsewhere"), url)
    with monkeypatch.context() as patch:  # as a machine that does not see the first folder
        patch.setattr(owner, "_original", lambda *_: None)
        new.starts(2, seed + 1)
    with pytest.raises(NotOurs, match="another start of this run, or of a copy of its folder"):
        old.trains(2, seed)
    assert whole(new.run_dir, url) == [1, 2]
    manifest = "checkpoints/step_00000002/manifest.json"
    assert open_store(url).read(manifest) == (new.run_dir / manifest).read_bytes()


def test_the_other_ranks_wait_for_rank_0_to_have_the_store(
    tmp_path: Path, url: str, seed: int
) -> None:
    write(tmp_path / "run", 1, seed)
    store, asked = open_store(url), CheckpointConfig(store=url)
    holds = [Hold(store, tmp_path / "run", asked, "this start") for _ in range(2)]
    assert not holds[1].is_held()
    holds[0].confirm()
    assert holds[1].is_held()
    Hold(store, tmp_path / "run", asked, "another").confirm()
    assert not holds[1].is_held()


def test_a_store_that_is_away_at_the_start_is_taken_when_it_answers(
    tmp_path: Path, url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, away = Run(tmp_path / "run", url), threading.Event()
    write(run.run_dir, 1, seed)
    theirs = Store.found
    away.set()

    def found(self: Store, *args: Any) -> bytes | None:
        if away.is_set():
            raise Unreachable.of("the server is gone", "", "")
        return theirs(self, *args)

    monkeypatch.setattr(Store, "found", found)
    run.looks()
    run.begins()
    assert not (run.run_dir / owner.NAMES_RUN).exists()
    away.clear()
    run.trains(2, seed)
    assert whole(run.run_dir, url) == [1, 2]
    assert json.loads(open_store(url).read("run.json"))["name"] == "run"

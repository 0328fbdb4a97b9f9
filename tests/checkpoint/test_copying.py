"""Which checkpoints get a copy, and what a save and the end of a run do about one that is slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies import sending
from loopcoder.checkpoint.copies.copying import Copies, _Told
from loopcoder.checkpoint.copies.lacking import NotCopied
from loopcoder.checkpoint.pruning import prune
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import Preempted, Unreachable
from loopcoder.storage.writing import WritableStore
from tests.checkpoint.test_format import write
from tests.checkpoint.test_sending import whole

pytestmark = pytest.mark.usefixtures("ranks")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A store that takes nothing before this is set."""
    theirs, event = WritableStore.upload, threading.Event()

    def upload(self: WritableStore, *args: Any) -> None:
        event.wait(20)
        theirs(self, *args)

    monkeypatch.setattr(WritableStore, "upload", upload)
    yield event
    event.set()


class Run:
    """What a run does with its copies."""

    def __init__(self, run_dir: Path, url: str, **asked: Any):
        self.asked, self.run_dir = CheckpointConfig(store=url, **asked), run_dir
        self.events: list[str] = []
        self.copies = Copies(self.asked, run_dir, lambda kind, **_: self.events.append(kind))

    def save(self, step: int, seed: int) -> None:
        write(self.run_dir, step, seed)
        self.copies.saved(step)
        folder = self.run_dir / "checkpoints"
        prune(folder, self.asked, newest=step, in_use=self.copies.in_use)

    def end(self, stopping: bool = False) -> None:
        self.copies.finish(lambda: None, lambda: stopping)

    def local(self) -> list[int]:
        return [c.step for c in layout.complete(self.run_dir / "checkpoints")]


@pytest.mark.parametrize(("every", "copied"), [(None, [1, 4]), (2, [1, 2, 4])])
def test_saves_do_not_wait_and_the_newest_is_next(
    tmp_path: Path,
    url: str,
    opened: threading.Event,
    seed: int,
    every: int | None,
    copied: list[int],
) -> None:
    """What is being copied is not deleted."""
    run = Run(tmp_path / "run", url, keep=1, keep_every=every)
    for step in (1, 2, 3, 4):
        run.save(step, seed)
    assert run.local() == sorted({*copied, 1, 4}) and run.copies.in_use == [1]
    opened.set()
    run.end()
    assert whole(run.run_dir, url) == copied
    assert run.events == ["checkpoint_copied"] * len(copied)
    run.save(5, seed)
    assert 1 not in run.local()
    run.end()


def test_a_start_makes_up_what_is_missing(tmp_path: Path, url: str, seed: int) -> None:
    """Not of what is later than the checkpoint that the run goes on from."""
    for step in (1, 2, 3, 4):
        write(tmp_path / "run", step, seed)
    run = Run(tmp_path / "run", url, keep_every=2)
    run.copies.make_up(3)
    run.end()
    assert whole(run.run_dir, url) == [2, 3]
    again = Run(tmp_path / "run", url, keep_every=2)
    again.copies.make_up(4)
    again.end()
    assert whole(run.run_dir, url) == [2, 3, 4] and again.events == ["checkpoint_copied"]


def test_the_end_of_a_run_waits_but_not_when_it_is_asked_to_stop(
    tmp_path: Path, url: str, opened: threading.Event, seed: int
) -> None:
    run = Run(tmp_path / "run", url)
    run.save(1, seed)
    with pytest.raises(Preempted, match="stopped while the checkpoint of step 1 was copied"):
        run.end(stopping=True)
    assert whole(run.run_dir, url) == []
    opened.set()
    run.end()
    assert whole(run.run_dir, url) == [1]


def test_a_store_that_stays_away_ends_a_run_with_75(
    tmp_path: Path,
    url: str,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def upload(*_: Any) -> None:
        raise Unreachable.of("the server is gone", "", "")

    monkeypatch.setattr(WritableStore, "upload", upload)
    monkeypatch.setattr(sending, "PATIENCE_S", 0.05)
    run = Run(tmp_path / "run", url)
    run.save(1, seed)
    with pytest.raises(NotCopied, match=r"step 1 could not be copied to .*: the server is gone"):
        run.end()
    run.copies.close()
    assert run.events == ["store_unreachable"]
    assert capsys.readouterr().err.count("the server is gone") == 1


def test_an_outage_is_said_once_by_one_rank(
    tmp_path: Path, url: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where rank 0 reaches the store and another one does not."""
    fine, away = (_Told(True, {}, None, fault, None, {}) for fault in (None, "no route"))
    run = Run(tmp_path / "run", url)
    for told in ([fine, fine], [fine, away], [fine, away], [fine, fine], [away, away]):
        run.copies._tell_of_others(told)
    assert run.events == ["store_unreachable", "store_reachable"]
    assert capsys.readouterr().err.count("rank 1: no route") == 1
    other = Run(tmp_path / "other", url)
    other.copies._is_main = False
    assert other.copies._sender is not None
    other.copies._sender.news.put(("store_unreachable", {"rank": 1, "why": "no route"}))
    other.copies.poll()
    assert capsys.readouterr().err == ""


def test_a_start_does_not_need_an_answer(
    tmp_path: Path, url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "run", 1, seed)
    run = Run(tmp_path / "run", url)

    def found(*_: Any) -> None:
        raise Unreachable.of("the server is gone", "", "")

    with monkeypatch.context() as patch:
        patch.setattr(WritableStore, "found", found)
        run.copies.make_up(1)
    monkeypatch.setattr(sending, "WHILE_TRAINING", (0.001,))
    run.end()
    assert whole(run.run_dir, url) == [1]


def test_without_a_store_nothing_happens(tmp_path: Path, seed: int) -> None:
    copies = Copies(CheckpointConfig(), tmp_path, print)
    copies.make_up(1)
    copies.saved(1)
    copies.poll()
    copies.finish(lambda: None, lambda: True)
    copies.close()
    assert list(tmp_path.iterdir()) == []


def test_a_milestone_that_has_no_copy_is_told_at_the_end(
    tmp_path: Path, url: str, opened: threading.Event, seed: int
) -> None:
    run = Run(tmp_path / "run", url, keep_every=2)
    run.save(2, seed)
    (layout.step_folder(run.run_dir, 2) / "__2_0.distcp").unlink()
    run.save(3, seed)
    opened.set()
    with pytest.raises(NotCopied, match="step 2 could not be copied"):
        run.end()
    assert whole(run.run_dir, url) == [3]


def test_a_checkpoint_that_is_gone_is_said_and_others_are_copied(
    tmp_path: Path, url: str, opened: threading.Event, seed: int
) -> None:
    run = Run(tmp_path / "run", url)
    run.save(1, seed)
    (layout.step_folder(run.run_dir, 1) / "__2_0.distcp").unlink()
    run.save(2, seed)
    opened.set()
    run.end()
    assert whole(run.run_dir, url) == [2]
    assert sorted(run.events) == ["checkpoint_copied", "checkpoint_not_copied"]
    opened.clear()
    run.save(3, seed)
    (layout.step_folder(run.run_dir, 3) / "__2_0.distcp").unlink()
    opened.set()
    with pytest.raises(NotCopied, match="step 3 could not be copied"):
        run.end()

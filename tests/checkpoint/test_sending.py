"""Copies of checkpoints in a store: only what is whole counts, whatever is killed on the way."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import xxhash
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from loopcoder.checkpoint import format as layout
from loopcoder.checkpoint.copies import lacking as lacking_module
from loopcoder.checkpoint.copies import sending
from loopcoder.checkpoint.copies.lacking import NotCopied, copy_rest, lacking, prune_copies
from loopcoder.checkpoint.copies.sending import Sender
from loopcoder.checkpoint.copies.stored import copies, copy_of, open_store
from loopcoder.config.schema import CheckpointConfig
from loopcoder.errors import InputError, LoopcoderError, Unreachable
from loopcoder.storage.writing import WritableStore
from tests.checkpoint.test_format import write
from tests.data.stores import files_of


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "_LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(sending, "WHILE_TRAINING", (0.001,))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def run_dir(tmp_path: Path, seed: int) -> Path:
    """A run with checkpoints of three ranks after steps 1, 2 and 3."""
    for step in (1, 2, 3):
        write(tmp_path / "run", step, seed)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    return tmp_path / "run"


def digest(run_dir: Path, step: int) -> str:
    manifest = layout.step_folder(run_dir, step) / layout.MANIFEST
    return xxhash.xxh3_128_hexdigest(manifest.read_bytes())


def send(run_dir: Path, url: str, *steps: int, rank: int = 0, world: int = 1) -> Sender:
    sender = Sender(open_store(url), run_dir, rank, world, visible_within_s=1)
    sender.send({step: digest(run_dir, step) for step in steps})
    return sender


def sent(run_dir: Path, url: str, *steps: int) -> None:
    sender = send(run_dir, url, *steps)
    sender.wait(20)
    assert not sender.is_busy and not sender.failed


def whole(run_dir: Path, url: str) -> list[int]:
    """Return the steps with a manifest in the store, after comparing all that it names."""
    found = []
    for stored in copies(open_store(url)):
        if (content := stored.manifest()) is not None:
            there = files_of(Path(stored.url.removeprefix("file://")))
            for name, entry in json.loads(content)["files"].items():
                assert xxhash.xxh3_128_hexdigest(there[name]) == entry["xxh3_128"], name
            found.append(stored.step)
    return found


def test_a_copy_has_what_the_checkpoint_has_and_the_files_of_the_run(
    run_dir: Path, url: str, tmp_path: Path
) -> None:
    (run_dir / "plots").mkdir()
    (run_dir / ".lock").touch()
    sent(run_dir, url, 3, 1)
    there = files_of(tmp_path / "store")
    names = ("step_00000002", "/.lock")
    wanted = {n: c for n, c in files_of(run_dir).items() if not any(x in f"/{n}" for x in names)}
    assert there == wanted


@pytest.mark.parametrize("first", [0, 1])
def test_the_manifest_waits_for_the_files_of_all_ranks(run_dir: Path, url: str, first: int) -> None:
    one = send(run_dir, url, 2, rank=first, world=2)
    stored = copy_of(open_store(url), 2)

    def receipts() -> list[str]:
        return [name for name in stored.store.names() if name.startswith(".sent")]

    while not receipts():
        pass
    assert stored.manifest() is None
    other = send(run_dir, url, 2, rank=1 - first, world=2)
    one.wait(20)
    other.wait(20)
    assert whole(run_dir, url) == [2] and not receipts()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("no"), f"user {os.geteuid()} may not do that in this folder"),
        (FileNotFoundError("no"), "a folder or link of its path leads nowhere"),
        (FileExistsError("no"), "a part of its path is a file"),
        (OSError(errno.ENOSPC, "no"), "its disk is full, fails, or is not mounted"),
    ],
)
def test_a_folder_that_cannot_be_written_is_not_called_a_server(
    url: str, monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    def pipe_file(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LocalFileSystem, "pipe_file", pipe_file)
    with pytest.raises(LoopcoderError) as told:
        open_store(url, print).write("name", b"", pauses=())
    assert says in str(told.value) and told.value.exit_code == (75 if error.errno else 3)
    assert not any(word in str(told.value) for word in ("bucket", "server", "AWS", "credentials"))


class Counted:
    """Counts what changes a local store, and calls `after` with its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.number = 0
        self.after: Callable[[int], object] = lambda number: None
        for name in ("pipe_file", "put_file", "rm_file"):
            monkeypatch.setattr(LocalFileSystem, name, self._counting(name))

    def _counting(self, name: str) -> Callable[..., None]:
        theirs = getattr(LocalFileSystem, name)

        def one(*args: Any, **kwargs: Any) -> None:
            theirs(*args, **kwargs)
            self.number += 1
            self.after(self.number)

        return one


def test_a_copy_that_is_killed_after_any_operation(
    run_dir: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Over an older save of the same step: what has a manifest is whole at every moment, and the
    next try completes it."""
    sent(run_dir, url, 2)
    shutil.copytree(tmp_path / "store", tmp_path / "before")
    shutil.rmtree(layout.step_folder(run_dir, 2))
    write(run_dir, 2, seed + 1, files=2)
    counted, killed_after = Counted(monkeypatch), 0
    while counted.number >= killed_after:
        killed_after += 1
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "before", tmp_path / "store")
        sender = Sender(open_store(url), run_dir)

        def after(number: int, sender: Sender = sender, last: int = killed_after) -> None:
            assert whole(run_dir, url) in ([], [2])
            if number == last:
                sender.close()

        counted.number, counted.after = 0, after
        sender.send({2: digest(run_dir, 2)})
        sender.wait(20)
        made, counted.after = counted.number, lambda _: None
        sent(run_dir, url, 2)
        there = files_of(tmp_path / "store/checkpoints/step_00000002")
        here = files_of(layout.step_folder(run_dir, 2))
        assert {name: there[name] for name in here} == here
        assert all(name.startswith(".sent") for name in there.keys() - here.keys())
        assert whole(run_dir, url) == [2]
        counted.number = made
    assert killed_after > 8


def test_a_receipt_stays_valid_after_a_kill(
    run_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rank has sent is not sent again."""
    one = send(run_dir, url, 3, rank=1, world=2)
    one.wait(20)
    uploads: list[str] = []
    monkeypatch.setattr(WritableStore, "upload", lambda self, path, name, *_: uploads.append(name))
    again = send(run_dir, url, 3, rank=1, world=2)
    again.wait(20)
    assert uploads == []


def test_a_store_that_fails_is_tried_until_it_answers(
    run_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng, theirs = random.Random(seed), WritableStore.upload

    def upload(self: WritableStore, *args: Any) -> None:
        if rng.random() < 0.7:
            raise Unreachable.of("it is gone", "", "")
        theirs(self, *args)

    monkeypatch.setattr(WritableStore, "upload", upload)
    sender = send(run_dir, url, 1, 2, 3)
    sender.wait(20)
    kinds = [sender.news.get()[0] for _ in range(sender.news.qsize())]
    assert kinds.count("store_unreachable") == kinds.count("store_reachable") > 0
    assert kinds.count("checkpoint_copied") == 3 and whole(run_dir, url) == [1, 2, 3]
    assert sender.stuck() is None


def test_a_run_that_is_done_does_not_wait_for_ever(
    run_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, events = CheckpointConfig(store=url), list[str]()

    def upload(*_: Any) -> None:
        raise Unreachable.of("the server is gone", "", "")

    def report(kind: str, **_: Any) -> None:
        events.append(kind)

    with monkeypatch.context() as patch:
        patch.setattr(WritableStore, "upload", upload)
        patch.setattr(sending, "PATIENCE_S", 0.05)
        with pytest.raises(NotCopied, match="the server is gone"):
            list(copy_rest(asked, run_dir, print, report, None))
    assert NotCopied.exit_code == 75 and lacking(open_store(url), asked, run_dir) == [3]
    list(copy_rest(asked, run_dir, print, report, None))
    assert events == ["store_unreachable", "checkpoint_copied"]
    assert whole(run_dir, url) == [3] and lacking(open_store(url), asked, run_dir) == []


def test_the_rest_may_take_its_time_is_on_record_and_old_copies_go(
    run_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent(run_dir, url, 1, 2)
    asked, theirs, opened = CheckpointConfig(store=url, store_keep=1), WritableStore.upload, Event()

    def upload(self: WritableStore, *args: Any) -> None:
        opened.wait(20)
        theirs(self, *args)

    monkeypatch.setattr(WritableStore, "upload", upload)
    monkeypatch.setattr(lacking_module, "_TICK_S", 0.001)
    events: list[str] = []
    rest = copy_rest(asked, run_dir, print, lambda kind, **_: events.append(kind), 1)
    assert [next(rest) for _ in range(3)] == [True] * 3 and events == []
    opened.set()
    assert all(rest)
    assert whole(run_dir, url) == [1, 3] and events == ["checkpoint_copied"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError("NoSuchBucket"), "cannot be written.*make the bucket"),
        (PermissionError("AccessDenied"), "may not be written.*list, read, write and remove"),
    ],
)
def test_a_store_that_takes_nothing_is_an_error_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    url = f"memory://{tmp_path.name}"

    def refuse(*_: Any) -> None:
        raise error

    open_store(url).try_out()
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(InputError, match=f"(?s)write-test.*{says}"):
        open_store(url).try_out()


def test_a_checkpoint_whose_file_is_gone_is_given_up(run_dir: Path, url: str) -> None:
    (layout.step_folder(run_dir, 2) / "__1_0.distcp").unlink()
    sender = send(run_dir, url, 2, 3)
    sender.wait(20)
    assert list(sender.failed) == [2] and "__1_0.distcp" in sender.failed[2]
    assert whole(run_dir, url) == [3]
    nothing: Any = None
    sender = Sender(nothing, run_dir)
    sender.send({3: digest(run_dir, 3)})
    sender.wait(20)
    assert "AttributeError" in sender.failed[3]  # whatever goes wrong is told
    waits = send(run_dir, url, 1, rank=0, world=2)
    waits.give_up([1])
    waits.wait(20)
    assert "another rank" in waits.failed[1]


def test_old_copies_go_and_what_is_set_aside_stays(run_dir: Path, url: str, seed: int) -> None:
    for step in (4, 5, 6):
        write(run_dir, step, seed)
    store, asked = open_store(url), CheckpointConfig(store=url, store_keep=2, keep_every=3)
    sent(run_dir, url, 1, 2, 3, 4, 6)
    copy_of(store, 2).set_aside("undone")
    broken_off = send(run_dir, url, 5, rank=1, world=2)
    broken_off.wait(20)
    prune_copies(store, asked, None, 4, {4})  # a later one is not touched
    assert [one.step for one in copies(store)] == [2, 3, 4, 5, 6]
    prune_copies(store, asked, 3, 6, {6})
    assert [one.step for one in copies(store)] == [2, 3, 4, 6]
    assert whole(run_dir, url) == [3, 4, 6]

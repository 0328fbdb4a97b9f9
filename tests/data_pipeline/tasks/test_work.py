"""A task is done when its marker is there, and what it left is compared with the marker."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import xxhash

from data_pipeline.schema import Place, Tally
from data_pipeline.tasks import work as module
from data_pipeline.tasks.work import Output, Result, Task, Work, read_sealed, write_sealed
from loopcoder.errors import InputError, LoopcoderError
from tests.data_pipeline.works import work_of


@dataclass(frozen=True)
class Counted(Result):
    """What a task of the test tells."""

    stage: ClassVar[str] = "numbers"
    numbers: list[tuple[str, int]]
    by_index: dict[int, dict[str, int]]
    tally: Tally


def output(index: int) -> Counted:
    tally = Tally("step", rows_in=5, rows_out=4)
    tally.drop("odd", Place("a.txt"))
    return Counted([("a", index), ("b", 2**64 - 1)], {index: {"text": 3}}, tally)


def run(work: Work, index: int) -> Output:
    """Write two files, one of which is hashed while it is written."""
    folder = work.folder / "deep" / f"{index}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a").write_bytes(b"a" * 100)
    (folder / "b").write_bytes(b"b")
    hashed = {folder / "b": {"bytes": 1, "xxh3_128": xxhash.xxh3_128_hexdigest(b"b")}}
    files = [folder / "a"]
    return Output(output(index), files, hashed, bytes_in=7, left_out={"odd": 1})  # type: ignore[arg-type]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return work_of(tmp_path / "work")


def test_what_a_task_tells_is_read_again(work: Work) -> None:
    task = Task(work, Counted, run)
    assert work.missing("numbers", 3) == [0, 1, 2]
    for index in (2, 0):
        task(index)
    assert work.missing("numbers", 3) == [1]
    task(1)
    assert work.missing("numbers", 3) == []
    assert [done.result for done in work.all_done(Counted)] == [output(i) for i in range(3)]
    done = work.done(Counted, 2)
    assert done.left_out == {"odd": 1}
    assert done.cost.bytes_in == 7 and done.cost.peak_rss_bytes > 0
    assert set(done.files) == {"deep/2/a", "deep/2/b"}
    for name in done.files:
        assert done.file(work.folder / name) == work.folder / name


def test_everything_is_on_disk_before_the_marker(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    Task(work, Counted, run)(1)
    marker = work.marker("numbers", 1)
    at = synced.index(f"{marker}.tmp")
    folder = work.folder / "deep"
    for path in (folder / "1" / "a", folder / "1" / "b", folder / "1", folder, work.folder):
        assert str(path) in synced[:at], path
    assert synced[at + 1 :] == [str(marker.parent)]


def test_a_task_that_fails_leaves_no_marker(work: Work) -> None:
    def failing(work: Work, index: int) -> Output:
        run(work, index)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Task(work, Counted, failing)(0)
    assert work.missing("numbers", 1) == [0]
    with pytest.raises(InputError, match="cannot read"):
        work.done(Counted)
    Task(work, Counted, run)(0)
    assert work.result(Counted) == output(0)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_file_that_was_changed_is_named(work: Work, name: str, rng: random.Random) -> None:
    Task(work, Counted, run)(0)
    done = work.done(Counted)
    path = work.folder / "deep" / "0" / name
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1 << rng.randrange(8)]) + path.read_bytes()[1:])
    done.file(path, contents=False)
    with pytest.raises(InputError) as error:
        done.file(path)
    assert str(path) in error.value.problems[0].fact
    assert error.value.problems[0].fix == f"delete {work.folder} and start the same command again"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match="bytes"):
        done.file(path, contents=False)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        done.file(path, contents=False)


def test_an_altered_marker_is_named(work: Work) -> None:
    Task(work, Counted, run)(0)
    path = work.marker("numbers", 0)
    good = json.loads(path.read_text())
    for bad in (
        "{",
        "[]",
        json.dumps(good | {"result": {"numbers": []}}),
        json.dumps(good | {"result": good["result"] | {"numbers": [["a", "many"]]}}),
        json.dumps({k: v for k, v in good.items() if k != "files"}),
    ):
        path.write_text(bad)
        with pytest.raises(InputError) as error:
            work.done(Counted)
        assert str(path) in str(error.value)
        assert f"delete {work.folder} and start the same command again" in str(error.value)


def test_other_inputs_and_versions_do_not_mix(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    Task(work, Counted, run)(0)
    with pytest.raises(InputError, match="must not mix"):
        dataclasses.replace(work, fingerprint="other").done(Counted)
    monkeypatch.setattr(module, "WORK_FORMAT", module.WORK_FORMAT + 1)
    with pytest.raises(InputError, match="begun by another version"):
        work.done(Counted)


def test_a_folder_of_an_older_version_is_refused(work: Work) -> None:
    work.refuse_other_format()
    (work.folder / "done" / "parts").mkdir(parents=True)  # killed before the first marker
    work.refuse_other_format()
    old = work.marker("read", 0)
    old.parent.mkdir(parents=True)
    old.write_text('{"fingerprint": "1", "tallies": []}')
    with pytest.raises(InputError) as error:
        work.refuse_other_format()
    assert error.value.problems[0].fix == f"delete {work.folder} and start the same command again"


def test_tasks_of_a_killed_build_do_no_more(work: Work) -> None:
    left_behind = Task(work, Counted, run)
    mine = work.take_over(lambda: None)
    with pytest.raises(LoopcoderError, match=r"(?s)another process drives .*fix: "):
        left_behind(0)
    Task(mine, Counted, run)(0)
    assert mine.missing("numbers", 1) == []


def test_sealed_files(tmp_path: Path, rng: random.Random) -> None:
    path, content = tmp_path / "a", rng.randbytes(rng.randrange(200))
    write_sealed(path, content)
    assert read_sealed(path, tmp_path) == content
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(InputError, match="other content"):
            read_sealed(path, tmp_path)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(InputError, match="other content"):
            read_sealed(path, tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        read_sealed(path, tmp_path)

"""The stages of deduplication in a work folder: stopped, damaged, and of other versions."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipeline.dedup import stages
from data_pipeline.dedup.stages import Clustered, Matched, Signed, cluster, kept, match, sign
from data_pipeline.schema import Document, Tally
from data_pipeline.tasks.work import Task, Work
from loopcoder.errors import InputError
from tests.data_pipeline.dedup.test_phases import run, some_chunks
from tests.data_pipeline.works import tree, work_of

Chunks = Sequence[Sequence[Document]]


def tasks(work: Work) -> list[tuple[Task, str, int]]:
    """Return every task with the name of its stage and its index, in their order."""
    signing, matching = Task(work, Signed, sign), Task(work, Matched, match)
    clustering = Task(work, Clustered, cluster)
    return [
        *((signing, "sign", chunk) for chunk in range(len(work.chunks))),
        *((matching, "match", index) for index in range(stages.num_matches(work))),
        (clustering, "cluster", 0),
    ]


def do_missing(work: Work) -> None:
    for task, stage, index in tasks(work):
        if index in work.missing(stage, index + 1):
            task(index)


def names_kept(work: Work) -> list[list[str]]:
    return [[d.id for d in kept(work, i, Tally("dedup"))] for i in range(len(work.chunks))]


@pytest.fixture
def chunks(rng: random.Random) -> Chunks:
    return some_chunks(rng, 3)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is synced to disk: it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("unsynced")
def test_stages_do_what_the_phases_do(tmp_path: Path, chunks: Chunks) -> None:
    work = work_of(tmp_path / "work", chunks)
    do_missing(work)
    assert names_kept(work) == run(tmp_path / "phases", chunks)
    drops = work.result(Clustered).drops
    dropped = sum(map(len, chunks)) - sum(map(len, names_kept(work)))
    assert sum(drops.values()) == dropped == sum(work.done(Clustered).left_out.values())


def test_a_stop_at_any_moment(
    tmp_path: Path, rng: random.Random, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the syncs of a build, one after the other, it ends as if it had not been."""
    left = [1 << 62]

    def fsync(_: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fsync)
    whole = work_of(tmp_path / "whole", chunks)
    before = left[0]
    do_missing(whole)
    syncs = before - left[0]
    stopped = work_of(tmp_path / "stopped", chunks)
    stops = 0
    while True:
        left[0] = rng.randrange(1, syncs // 4)
        try:
            do_missing(stopped)
        except KeyboardInterrupt:
            stops += 1
            continue
        break
    left[0] = 1 << 62
    print(f"stopped {stops} times at {syncs} syncs")
    assert stops
    assert tree(stopped.folder) == tree(whole.folder)


DAMAGE = list(
    itertools.product(("band-03.bin", "exact.bin", "sketch.bin"), ("truncated", "gone", "changed"))
)[:-1]  # the sketches are read in places only, so no more than their size is compared


def spoil(path: Path, how: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif how == "gone":
        path.unlink()
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_a_damaged_file_is_named(
    tmp_path: Path, rng: random.Random, chunks: Chunks, name: str, how: str
) -> None:
    work = work_of(tmp_path, chunks)
    signing, matching = Task(work, Signed, sign), Task(work, Matched, match)
    for chunk in range(3):
        signing(chunk)
    path = tmp_path / "dedup" / "sign" / "00001" / name
    spoil(path, how, rng)
    index = stages.num_matches(work) - 1 if name == "exact.bin" else 3
    with pytest.raises(InputError) as error:
        matching(index)
    assert str(path) in str(error.value)
    assert f"delete {tmp_path} and start the same command again" in str(error.value)
    signing(1)
    matching(index)


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("how", ["truncated", "gone", "changed"])
def test_damaged_pairs_and_drops_are_named(
    tmp_path: Path, rng: random.Random, chunks: Chunks, how: str
) -> None:
    work = work_of(tmp_path, chunks)
    do_missing(work)
    dropped = tmp_path / "dedup" / "drop" / "00001"
    good = dropped.read_bytes()
    spoil(dropped, how, rng)
    with pytest.raises(InputError, match=r"(?s)drop/00001.* delete .* start the same command"):
        list(kept(work, 1, Tally("dedup")))
    dropped.write_bytes(good)
    pairs = tmp_path / "dedup" / "match" / "exact.bin"
    spoil(pairs, how, rng)
    with pytest.raises(InputError, match=r"(?s)match/exact.bin.* delete .* start the same"):
        Task(work, Clustered, cluster)(0)


@pytest.mark.usefixtures("unsynced")
def test_other_documents_than_those_signed_are_named(
    tmp_path: Path, chunks: Chunks, rng: random.Random
) -> None:
    work = work_of(tmp_path, chunks)
    do_missing(work)
    swapped = work_of(tmp_path, [chunks[1], chunks[0], chunks[2]])
    with pytest.raises(InputError, match=r"(?s)00000-0000\.jsonl\.z: its .* are not the .*delete"):
        list(kept(swapped, 0, Tally("dedup")))


@pytest.mark.usefixtures("unsynced")
def test_signatures_of_another_version_are_refused(
    tmp_path: Path, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(tmp_path, chunks)
    Task(work, Signed, sign)(0)
    monkeypatch.setattr(stages, "algorithm", lambda _: "99")
    with pytest.raises(InputError, match=r"(?s)this is version 99.*delete"):
        Task(work, Matched, match)(0)

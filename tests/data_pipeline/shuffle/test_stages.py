"""The stages of the shuffle in a work folder: full disks, small memory, damage."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.driver import prepare
from data_pipeline.shuffle import stages
from data_pipeline.stages import STAGES
from data_pipeline.tasks.work import Task, Work
from loopcoder.config.data import DataConfig
from loopcoder.errors import DiskFull, InputError
from tests.data_pipeline.works import work_left

Config = Callable[..., DataConfig]


@pytest.fixture
def work(config: Config) -> Work:
    """A build whose stages are all done, but for the corpus, which was moved away."""
    data = config(keep_work=True, shards=3, seq_length=8, part_bytes=1000)
    return work_left(prepare(data, report=lambda _: None), data)


def task(work: Work, name: str) -> Task:
    (stage,) = [stage for stage in STAGES if stage.name == name]
    return Task(work, stage.kind, stage.run)


@pytest.mark.data_full
def test_a_full_disk(work: Work) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("tokenise", "index", "assemble", "hold_out"):
        marker = work.marker(name, 0)
        before = marker.read_bytes()
        marker.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(DiskFull, match="ulimit -f") as error:
                task(work, name)(0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "start the same command again" in error.value.problems[0].fix
        assert not marker.exists()
        task(work, name)(0)
        assert marker.read_bytes().partition(b'"cost"')[0] == before.partition(b'"cost"')[0]


@pytest.mark.data_full
def test_a_bucket_must_fit_in_half_the_memory(work: Work, config: Config) -> None:
    size = sum(p.stat().st_size for p in (work.folder / "buckets" / "bucket-00001").iterdir())
    build = replace(work.data.build, worker_bytes=2 * size - 2)
    small = replace(work, data=replace(work.data, build=build))
    with pytest.raises(InputError, match=r"(?s)bucket 1 has .* bytes.*half") as error:
        stages.assemble_shards(small, 1)
    # As many shards as it says; buckets of so few documents may be fuller again, which is said.
    enough = 3
    while True:
        fixes = [problem.fix.split("=")[1] for problem in error.value.problems]
        more = max(int(fix.split(",")[0]) for fix in fixes)
        assert more > enough
        enough = more
        data = replace(work.data, build=replace(build, shards=enough), seq_length=1)
        try:
            corpus = prepare(data, report=lambda _: None)
            break
        except InputError as again:
            error = SimpleNamespace(value=again)
    assert len(corpus.prefixes("text", "train")) == enough


@pytest.mark.data_full
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("tokenise", "count/00000.npy"),
        ("tokenise", "plan/00000"),
        ("index", "done/tokenise/*.json"),
        ("assemble", "buckets/index/00000.jsonl"),
        ("assemble", "buckets/bucket-00000/*.docs"),
        ("hold_out", "held_out/index/00000.jsonl"),
        ("validate", "corpus/train/text-00000.bin"),
    ],
)
def test_what_was_changed_is_named(work: Work, rng: random.Random, name: str, pattern: str) -> None:
    if name == "validate":
        task(work, "assemble")(0)
    path = rng.choice(sorted(work.folder.glob(pattern)))
    good = path.read_bytes()
    at = rng.randrange(len(good))
    changes: list[bytes] = [good[:at]]
    if path.suffix != ".json":  # of a marker, what a task tells is checked, not each byte
        changes.append(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :])
    for bad in changes:
        path.write_bytes(bad)
        with pytest.raises(InputError) as error:
            task(work, name)(0)
        assert str(path) in str(error.value)
        assert f"delete {work.folder} and start the same command again" in str(error.value)
    path.unlink()
    if path.suffix != ".json":
        with pytest.raises(InputError, match=Path(path).name):
            task(work, name)(0)
    path.write_bytes(good)
    task(work, name)(0)

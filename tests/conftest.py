"""Shared fixtures. Random inputs are drawn anew in every run; the seed is printed with a
failure."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts import third_of


def fresh_seed() -> int:
    """A fresh seed; LOOPCODER_TEST_SEED repeats a failing run."""
    return int(os.environ.get("LOOPCODER_TEST_SEED", random.SystemRandom().randrange(2**31)))


# Tests work on tiny tensors, two processes at a time: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


THIRDS = ("chaos", "dist_full", "data_full")
"""Sets too long for one commit; tests/dist has parts of its own."""


def _starts_processes(path: str) -> bool:
    return path.startswith(("tests/dist/", "tests/train/"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of a long set (-m NAME) import only the files with its mark: all together take 15 s, which CI
    spent on each of eight sets."""
    mark = config.option.markexpr
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    if is_test and mark.isidentifier() and f"mark.{mark}" not in collection_path.read_text():
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that start processes first: they are what the others wait for. Of a set in
    THIRDS a part has a third."""
    items.sort(key=lambda item: not _starts_processes(item.nodeid))
    mark = config.option.markexpr
    if mark not in THIRDS:
        return
    all_of_it = {
        item.nodeid: item
        for item in items
        if item.get_closest_marker(mark) and not item.nodeid.startswith("tests/dist/")
    }
    left_out = all_of_it.keys() - set(third_of([*all_of_it]))
    if left_out:
        config.hook.pytest_deselected(items=[all_of_it[name] for name in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the files that start processes to one worker, which needs more than a core for them."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # type: ignore[misc] # it is untyped
        def _split_scope(self, nodeid: str) -> str:
            return "processes" if _starts_processes(nodeid) else str(super()._split_scope(nodeid))

    return ByFile(config, log)


@pytest.fixture
def seed() -> int:
    """A fresh seed, printed for repetition."""
    value = fresh_seed()
    print(f"LOOPCODER_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A generator with a fresh seed, printed for repetition."""
    return random.Random(seed)


@pytest.fixture(scope="session")
def ranks() -> Iterator[object]:
    """A world of one process with megatron-core's groups."""
    from torch import distributed as dist

    from loopcoder.config.schema import ParallelConfig
    from loopcoder.parallel import mcore

    if dist.is_initialized():  # a test before has loaded a model
        from loopcoder import loaded

        yield loaded._alone()
        return
    world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with pytest.MonkeyPatch.context() as patch:  # what tests start must not join this world
        for name, value in world.items():
            patch.setenv(name, value)
        mcore.start_processes()
    yield mcore.initialise(ParallelConfig(), seed=1)
    mcore.shutdown()

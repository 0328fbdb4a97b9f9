"""Shared fixtures. Random inputs are drawn anew in every run; the seed is printed with a
failure."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest


def fresh_seed() -> int:
    """A fresh seed; LOOPCODER_TEST_SEED repeats a failing run."""
    return int(os.environ.get("LOOPCODER_TEST_SEED", random.SystemRandom().randrange(2**31)))


# Tests work on tiny tensors, two processes at a time: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that start processes first, so that two workers end at the same time."""
    items.sort(key=lambda item: not {"dist", "train"} & set(item.path.parts))


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
    from loopcoder.config.schema import ParallelConfig
    from loopcoder.parallel import mcore

    world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with pytest.MonkeyPatch.context() as patch:  # what tests start must not join this world
        for name, value in world.items():
            patch.setenv(name, value)
        mcore.start_processes()
    yield mcore.initialise(ParallelConfig(), seed=1)
    mcore.shutdown()

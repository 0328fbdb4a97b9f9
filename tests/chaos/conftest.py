"""What tests share that fork their runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.kills import Victim
from tests.chaos.worlds import ForkServer
from tests.train.conftest import documents, environment  # noqa: F401

LAYOUTS = {1: [], 2: [], 4: ["parallel.tp=2"]}
"""By ranks."""


@pytest.fixture(scope="session")
def server(environment: dict[str, str]) -> Iterator[ForkServer]:  # noqa: F811
    """A process that has imported everything."""
    found = ForkServer(environment)
    yield found
    found.close()


@pytest.fixture(scope="session")
def whole(
    server: ForkServer,
    documents: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, Victim]:
    """Runs that nobody kills, by the number of ranks, as they are needed."""

    class Runs(dict[int, Victim]):
        def __missing__(self, ranks: int) -> Victim:
            run_dir = tmp_path_factory.mktemp(f"whole_{ranks}_") / "run"
            options = [f"path={documents}", *LAYOUTS[ranks]]
            self[ranks] = Victim(server, run_dir, ranks, False, random.Random(0), {}, options)
            self[ranks].finish()
            return self[ranks]

    return Runs()

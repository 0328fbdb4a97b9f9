"""What tests share that fork their runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.worlds import ForkServer
from tests.train.conftest import documents, environment  # noqa: F401


@pytest.fixture(scope="session")
def server(environment: dict[str, str]) -> Iterator[ForkServer]:  # noqa: F811
    """A process that has imported everything."""
    found = ForkServer(environment)
    yield found
    found.close()

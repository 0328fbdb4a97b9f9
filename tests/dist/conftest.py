"""A part of the long distributed set: LOOPCODER_TEST_PART=2/5 takes every fifth test of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dist.layouts import Asked
from tests.parts import part_of


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> Asked:
    """Choose the cases of which this run has tests, by `name`: one fixture trains all of a list."""
    names = {
        item.callspec.params.get("name")
        for item in request.session.items
        if item.path == request.path and isinstance(item, pytest.Function)
        if hasattr(item, "callspec")
    }
    return lambda cases: [case for case in cases if case.name in names]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long = {
        item.nodeid: item
        for item in items
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("dist_full")
    }
    left_out = long.keys() - part_of(long).keys()
    if left_out:
        config.hook.pytest_deselected(items=[long[name] for name in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]

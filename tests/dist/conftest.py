"""A part of the long distributed set: LOOPCODER_TEST_PART=2/5 takes every fifth test of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parts import part_of


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # These choose their cases themselves, since one fixture runs all of them.
    long = {
        item.nodeid: item
        for item in items
        if item.path.parent == Path(__file__).parent
        and item.get_closest_marker("dist_full")
        and item.path.name not in ("test_matrix.py", "test_objectives.py")
    }
    left_out = long.keys() - part_of(long).keys()
    if left_out:
        config.hook.pytest_deselected(items=[long[name] for name in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]

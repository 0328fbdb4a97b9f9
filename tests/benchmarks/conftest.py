"""Scripts of benchmarks/ import each other by the names of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.conftest import corpus, data

__all__ = ["corpus", "data"]  # fixtures

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make them importable, as for a script that is started there."""
    monkeypatch.syspath_prepend(SCRIPTS)

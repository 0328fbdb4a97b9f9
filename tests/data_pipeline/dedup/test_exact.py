"""Exact duplicates and the tally."""

from __future__ import annotations

import pytest

from data_pipeline.dedup.exact import normalise
from data_pipeline.schema import Place, Tally


def test_copies_differ_in_line_ends_and_trailing_blanks_only() -> None:
    original = normalise(b"def f():\n    return 1\n")
    assert normalise(b"def f():  \r\n    return 1\t\r\n\r\n") == original
    assert normalise(b"\n\ndef f():\r    return 1") == original
    assert normalise(b"def f():\n  return 1\n") != original
    assert normalise(b"    def f():\n    return 1\n") != original


def test_a_tally_that_loses_rows_is_a_bug() -> None:
    tally = Tally("stage", rows_in=3, rows_out=1)
    tally.drop("reason", Place("a.txt"))
    with pytest.raises(RuntimeError, match="3 rows in, but 1 out"):
        tally.check()
    tally.drop("reason", Place("a.txt"))
    tally.check()

"""Precision and recall of scrubbing on lines of real packages that were labelled by hand.

A line of labelled.jsonl has the text around something of the form of an address or a key
(`marked`), and whether it is one (`one`): the address of a host, the mailbox of somebody, a key
that was issued. The lines are of packages under permissive licences. Letters of people's addresses
were moved on by three. Keys that are ones are drawn at random in test_scrub.py.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.filters import FilterConfig
from data_pipeline.filters.scrub import EMAIL, IP_ADDRESS, KEY, scrub

_LINES = (Path(__file__).parent / "labelled.jsonl").read_text("utf-8").splitlines()
_CASES = [json.loads(line) for line in _LINES]
_PLACEHOLDERS = {"ip": IP_ADDRESS, "email": EMAIL, "key": KEY}


@pytest.mark.parametrize(
    ("kind", "precision", "recall"), [("ip", 1.0, 0.75), ("email", 0.88, 0.98), ("key", 1.0, 0.0)]
)
def test_precision_and_recall(kind: str, precision: float, recall: float) -> None:
    found: Counter[tuple[bool, bool]] = Counter()
    wrong = []
    for case in _CASES:
        if case["kind"] != kind:
            continue
        text = scrub(case["text"], FilterConfig(), Counter())
        is_gone = _PLACEHOLDERS[kind] in text and text.count(case["marked"]) < case["text"].count(
            case["marked"]
        )
        found[case["one"], is_gone] += 1
        if is_gone and not case["one"]:
            wrong.append(case["text"])
    right = found[True, True]
    assert right >= precision * (right + found[False, True]), wrong
    assert right >= recall * (right + found[True, False])
    assert found.total() >= 60

"""Patterns of rules find what a plain search finds, in any text."""

from __future__ import annotations

import random
import re

from data_pipeline.langid.patterns import Head, is_found, ways_of
from data_pipeline.langid.rules import OWN
from data_pipeline.langid.table import LINGUIST

OWN_PATTERNS = {p for rules in OWN.values() for _, *patterns in rules for p in patterns if p}
PATTERNS = sorted(
    OWN_PATTERNS
    | {p for rules in LINGUIST.rules.values() for _, patterns in rules for _, p in patterns}
)
PIECES = ["\n", "\r\n", "\n\n", "\n \t\n", " ", "\t", "x", "a1", *"(){};:<"]


def as_read(raw: bytes) -> bytes:
    """Return a text as rules see it: without CR and empty lines, long lines cut off."""
    lines = re.sub(rb"\n(?:[^\S\n]*\n)+", b"\n", raw.replace(b"\r", b"\n").strip()).split(b"\n")
    return b"\n".join(line[:300] for line in lines)


def spelt(pattern: str, draw: random.Random) -> str:
    """Return something like what a pattern finds: its words, and signs for all else."""
    text = re.sub(r"\(\?\w*[:=!]|\\[bAZ]|[()?*+^$]", "", pattern)
    text = re.sub(r"\\[sStW]|\[ \\t\]", " ", text)
    text = re.sub(r"\\[wd]|\[[^\]]*\]|\{\d*,?\d*\}", lambda _: draw.choice("aZ1_"), text)
    return draw.choice(text.replace("\\", "").split("|"))


def test_patterns_find_what_a_search_finds(seed: int) -> None:
    draw = random.Random(seed)
    found = 0
    for pattern in PATTERNS:
        plain = re.compile(pattern.encode(), re.MULTILINE)
        for _ in range(40):
            pieces = [draw.choice(PIECES) for _ in range(draw.randrange(12))]
            for _ in range(draw.randrange(4)):
                pieces.insert(draw.randrange(len(pieces) + 1), spelt(pattern, draw))
            if draw.random() < 0.1:
                pieces.insert(draw.randrange(len(pieces) + 1), "y " * 160)
            raw = "".join(pieces).encode()
            wanted = plain.search(as_read(raw)) is not None
            assert is_found(Head(raw), ways_of(pattern)) == wanted, (pattern, raw)
            found += wanted
    assert found > 500


def test_a_line_is_long_from_its_301st_byte_on() -> None:
    for size, wanted in ((300, True), (301, False)):
        raw = b"x\n" + b"y" * (size - 3) + b"end\nz"
        assert is_found(Head(raw), ways_of("end$")) == wanted

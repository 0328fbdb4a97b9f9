"""Shares of languages that are published for the code of a corpus."""

from __future__ import annotations

from collections.abc import Mapping

OTHERS = "*"
"""Stands for all languages that are not named; they share in proportion to their capped supply."""

PUBLISHED_CODE_SHARES: Mapping[str, float] = {
    "Java": 10.3,
    "Python": 10.1,
    "JavaScript": 9.4,
    "Markdown": 8.7,
    "TypeScript": 8.3,
    "C": 5.2,
    "C++": 5.0,
    "PHP": 4.7,
    "C#": 4.0,
    "HTML": 3.7,
    OTHERS: 30.5,
    "unknown": 0,
}
"""Percent of the tokens of the code domain. Rounded as published they add up to 99.9; shares are
weights, so every one of them still rounds to what is published."""

SHARES: Mapping[str, Mapping[str, float]] = {"code": PUBLISHED_CODE_SHARES}

"""Proportions in whole numbers: what a batch, a shard and an order of samples are made of."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, lcm

from loopcoder.config.fields import as_override
from loopcoder.errors import InputError

DOMAINS = ("text", "code")
"""The domains of a corpus that is built here, in the order in which they are listed everywhere."""

CHAT = "chat"
"""The one domain of a corpus of conversations."""

CORPUS_EACH = "'data.corpora=[{path:FOLDER,weight:1},{path:OTHER,weight:1}]' of a corpus each"
"""The fix of a weight for what is no domain: a language, a source."""

MANY_PARTS = 100
"""Of a mixture in lowest terms; 1 : 3 has four. With more, the mixture may be what is wrong."""


def lowest_terms(mixture: Mapping[str, float]) -> dict[str, int]:
    """Return a mixture as the smallest whole numbers, text before code before any other domain.

    Raises:
        InputError: a weight is not positive.
    """
    exact = {domain: Fraction(str(weight)) for domain, weight in mixture.items()}
    if not exact or min(exact.values()) <= 0:
        raise InputError.of(
            f"the mixture is {dict(mixture)}",
            "every domain of a corpus has a positive weight",
            "'data.mixture={text:1,code:1}'",
        )
    whole = lcm(*(weight.denominator for weight in exact.values()))
    numbers = {domain: int(weight * whole) for domain, weight in exact.items()}
    divisor = gcd(*numbers.values())
    first = [domain for domain in DOMAINS if domain in numbers]
    others = sorted(numbers.keys() - set(DOMAINS))
    return {domain: numbers[domain] // divisor for domain in (*first, *others)}


def without(mixture: Mapping[str, float], domain: str) -> str | None:
    """Return the override that leaves a domain out, quoted for a shell; None: no other is left."""
    rest = {name: weight for name, weight in mixture.items() if name != domain}
    return f"'data.mixture={as_override(rest)}'" if rest else None

"""Read a corpus without the code under test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from loopcoder.data.corpus import Corpus


def stream(corpus: Corpus, domain: str, split: str) -> list[int]:
    """Return all token ids of a domain in the order of its files: uint16 for so small a
    vocabulary."""
    files = [Path(prefix + ".bin").read_bytes() for prefix in corpus.prefixes(domain, split)]
    return np.frombuffer(b"".join(files), np.uint16).tolist()


def pairs(ids: Iterable[Sequence[int]], eod: int) -> Counter[tuple[int, int]]:
    """Count tokens with their successors inside a document; what follows an EOD depends on the
    order of documents."""
    return Counter((a, b) for row in ids for a, b in pairwise(row) if a != eod)

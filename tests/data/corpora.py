"""Read a corpus without the code under test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from loopcoder.config.schema import Config
from loopcoder.data.corpus import Corpus
from loopcoder.data.labels import Label
from loopcoder.data.loader import Loader
from loopcoder.data.sampler import Position


def stream(corpus: Corpus, domain: str, split: str) -> list[int]:
    """Return all token ids of a domain in the order of its files: uint16 for so small a
    vocabulary."""
    files = [Path(prefix + ".bin").read_bytes() for prefix in corpus.prefixes(domain, split)]
    return np.frombuffer(b"".join(files), np.uint16).tolist()


def trained_labels(config: Config, corpus: Corpus) -> Counter[Label]:
    """Count what every label of every batch of a run is of, one by one."""
    found, loader = Counter[Label](), Loader(config, corpus, Position(), 0, 1, pin=False)
    for data in loader:
        for batch in data.microbatches:
            found.update(corpus.labels[i] for i in batch.label_ids.flatten().tolist())
    loader.close()
    return found


def pairs(ids: Iterable[Sequence[int]], eod: int) -> Counter[tuple[int, int]]:
    """Count tokens with their successors inside a document; what follows an EOD depends on the
    order of documents."""
    return Counter((a, b) for row in ids for a, b in pairwise(row) if a != eod)

"""The index of one benchmark: hashed n-grams of its texts."""

from __future__ import annotations

import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decontam.hashing import (
    HASH_BITS,
    NONE,
    Hashes,
    ngram_hashes,
    normalise,
    word_hashes,
)
from loopcoder.errors import InputError

NGRAM = 13
"""Words of an n-gram, unless a benchmark's prompts are too short for it."""
MIN_NGRAM = 8
SHORT_QUANTILE = 0.05
"""Share of a benchmark's problems whose prompts may be shorter than its n-grams."""
MAX_NGRAMS_PER_PART = 12
MAX_PARTS_PER_NGRAM = 8

_FORMAT = 1
# to choose which n-grams of a part are kept
_ORDER = np.uint64(0xBF58476D1CE4E5B9)


class Part(NamedTuple):
    """One text of a benchmark."""

    problem: str
    text: str
    is_prompt: bool = True
    """Whether a model is shown it; prompts decide n, and which problems count as covered."""


@dataclass(frozen=True)
class Benchmark:
    """Hashed n-grams of one benchmark; it cannot be turned back into text."""

    name: str
    ngram: int
    """Words of an n-gram."""
    hashes: Hashes
    """[n-grams] sorted within each part."""
    part: NDArray[np.int32]
    """[n-grams] The part that each belongs to, ascending."""
    problems: list[str]
    """Problem that each part comes from; a text that several have is named by the first."""
    meta: Mapping[str, Any]
    """Version, licence and sha256 of its origin; number of problems, and of those with an indexed
    prompt."""

    @classmethod
    def make(
        cls,
        name: str,
        parts: Iterable[Part],
        *,
        ngram: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Benchmark:
        """Index texts.

        Args:
            name: Name of the benchmark; documents are dropped as `contaminated_<name>`.
            parts: Prompts, solutions, tests, ...
            ngram: Words of an n-gram; None: by the lengths of the prompts.
            meta: Recorded as it is.
        """
        texts: dict[bytes, tuple[str, Hashes]] = {}
        prompts: dict[str, set[bytes]] = defaultdict(set)
        longest: Counter[str] = Counter()
        for part in parts:
            words = word_hashes(normalise(part.text))
            # copies within a benchmark are one part
            texts.setdefault(words.tobytes(), (part.problem, words))
            if part.is_prompt:
                prompts[part.problem].add(words.tobytes())
                longest[part.problem] = max(longest[part.problem], len(words))
        if ngram is None:
            lengths = sorted(longest.values()) or [NGRAM]
            ngram = min(NGRAM, max(MIN_NGRAM, lengths[int(SHORT_QUANTILE * len(lengths))]))
        distinct = {
            key: np.unique(np.concatenate(list(ngram_hashes(words, ngram))))
            for key, (_, words) in texts.items()
            if len(words) >= ngram
        }
        every, count = np.unique(np.concatenate([NONE, *distinct.values()]), return_counts=True)
        common = every[count > MAX_PARTS_PER_NGRAM]
        kept = {key: _smallest(np.setdiff1d(h, common)) for key, h in distinct.items()}
        kept = {key: h for key, h in kept.items() if len(h)}
        sizes = [len(h) for h in kept.values()]
        return cls(
            name=name,
            ngram=ngram,
            hashes=np.concatenate([NONE, *kept.values()]),
            part=np.repeat(np.arange(len(kept), dtype=np.int32), sizes),
            problems=[texts[key][0] for key in kept],
            meta={
                "num_problems": len(prompts),
                "num_covered": sum(not keys.isdisjoint(kept) for keys in prompts.values()),
                **(meta or {}),
            },
        )

    def to_bytes(self) -> bytes:
        """Return the index as .npz; the same index gives the same bytes."""
        head = {
            "format": _FORMAT,
            "name": self.name,
            "ngram": self.ngram,
            "problems": self.problems,
            "meta": dict(self.meta),
        }
        arrays: dict[str, NDArray[Any]] = {
            "head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
            "hashes": self.hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : HASH_BITS // 8],
            "sizes": np.bincount(self.part, minlength=len(self.problems)).astype(np.uint16),
        }
        file = BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for key, array in arrays.items():
                npy = BytesIO()
                np.lib.format.write_array(npy, array, allow_pickle=False)
                # with the date of today no two builds would be the same file
                entry = zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, npy.getvalue(), zipfile.ZIP_DEFLATED, 9)
        return file.getvalue()

    @classmethod
    def load(cls, path: Path) -> Benchmark:
        """Read an index.

        Raises:
            InputError: it is missing, or of another format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(file["head"].tobytes())
                hashes, sizes = file["hashes"], file["sizes"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
            raise InputError.of(
                f"cannot read the benchmark index {path}: {e}",
                "without it contaminated documents would be trained on",
                "install the package again, or python -m data_pipeline.decontam.make",
            ) from e
        if head["format"] != _FORMAT:
            raise InputError.of(
                f"the benchmark index {path} has format {head['format']}",
                f"this code hashes as format {_FORMAT} does, so nothing would be found",
                "python -m data_pipeline.decontam.make",
            )
        part = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        hashes = np.pad(hashes, ((0, 0), (0, 8 - hashes.shape[1]))).view("<u8").ravel()
        return cls(
            head["name"],
            head["ngram"],
            hashes.astype(np.uint64),
            part,
            head["problems"],
            head["meta"],
        )


def _smallest(hashes: Hashes) -> Hashes:
    """Return a sample that depends on the n-grams alone: those with the smallest second hash."""
    # a second hash, or the kept ones would crowd one corner of the filter
    order = np.argsort(hashes * _ORDER, kind="stable")
    return np.sort(hashes[order[:MAX_NGRAMS_PER_PART]])


def strings(value: Any) -> Iterator[str]:
    """Yield the keys, strings and numbers of a JSON value, in reading order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif value is not None:
        yield str(value)

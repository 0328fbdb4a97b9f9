"""Exact deduplication by the hash of normalised bytes."""

from __future__ import annotations

import xxhash


def normalise(data: bytes) -> bytes:
    """Return `data` with LF line ends, no blanks that end lines, no empty lines around it.

    Copies that differ in this only are the same document.
    """
    return b"\n".join(line.rstrip() for line in data.splitlines()).strip(b"\n")


class ExactDedup:
    """Remembers every document seen: about 100 bytes of memory each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, normalised: bytes) -> bool:
        """Tell whether this is the first document with these normalised bytes, and remember it."""
        digest = xxhash.xxh3_128_digest(normalised)
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True

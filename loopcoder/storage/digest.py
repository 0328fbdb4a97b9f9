"""Hashes of files."""

from __future__ import annotations

from pathlib import Path

import xxhash


def file_digest(path: Path) -> str:
    """Return the xxh3-128 of a file's content, read in bounded memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as f:
        while block := f.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()

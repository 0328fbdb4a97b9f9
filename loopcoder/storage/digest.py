"""Hashes: of a file's content, and of whatever determines a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash


def file_digest(path: Path) -> str:
    """Return the xxh3-128 of a file's content, read in bounded memory."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as f:
        while block := f.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """Hash what determines a result (anything that JSON can say) into 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())

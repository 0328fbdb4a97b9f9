"""Corpora in the cache that were built from the same paths as one that is about to be built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loopcoder.data.manifest import MANIFEST


def former_line(folder: Path, sources: list[dict[str, Any]]) -> str | None:
    """Return the line that says why a corpus is built although there is one, or None.

    Args:
        folder: Of the corpus to be, named NAME-FINGERPRINT.
        sources: What its manifest will say of its sources.
    """
    name = folder.name.rpartition("-")[0]
    found = [
        path.parent.name
        for path in sorted(folder.parent.glob(f"{name}-*/{MANIFEST}"))
        if _paths(path) == [source.get("path") for source in sources]
    ]
    if not found:
        return None
    return (
        f"data: {found[-1]} was built from the same paths; their files, the settings or this "
        "program have changed since"
    )


def _paths(manifest: Path) -> list[Any] | None:
    try:
        return [s.get("path") for s in json.loads(manifest.read_text(encoding="utf-8"))["sources"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None

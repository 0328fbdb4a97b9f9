"""What is on disk is complete, or is not there: writing that survives kill -9 and power cuts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash

from loopcoder.checkpoint.digest import file_digest


def fingerprint(*parts: Any) -> str:
    """Hash what determines a result (anything that JSON can say) into 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON under another name, sync and rename it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def synced_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Sync every file of a folder to disk; return the size and hash of each by its name."""
    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)}
    return files

"""Which commit this program is of."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

COMMIT = "COMMIT"
"""File beside the packages of a copy (launch/snapshot.py) that names its commit."""


@cache
def commit_of() -> str | None:
    """Return the commit of a checkout, with "+" where it has changes; None outside of one."""
    folder = Path(__file__).resolve().parents[1]
    if (copied := folder / COMMIT).exists():
        return copied.read_text(encoding="ascii").strip()
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

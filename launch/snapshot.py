"""A copy of this program beside a run that waits in a queue: what is changed later is not run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import xxhash

import loopcoder
from loopcoder.config.compose import conf_dir
from loopcoder.origin import COMMIT, commit_of
from loopcoder.storage.digest import file_digest

_ROOT = Path(loopcoder.__file__).resolve().parents[1]
_PACKAGES = ("loopcoder", "launch", "data_pipeline")


def code_hash() -> str:
    """Return ten hex digits of all files of this program."""
    digest = xxhash.xxh3_128()
    for name, path in _files():
        digest.update(f"{name} {file_digest(path)}\n".encode())
    return digest.hexdigest()[:10]


def copy_code(folder: Path, name: str) -> Path:
    """Copy this program to a folder in another, unless it is there, and return it."""
    copy = folder / name
    if copy.is_dir():
        return copy
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as temporary:
        whole = Path(temporary, name)
        for relative, path in _files():
            target = whole / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        if (commit := commit_of()) is not None:
            (whole / COMMIT).write_text(f"{commit}\n", encoding="ascii")
        try:
            whole.rename(copy)
        except OSError:
            if not copy.is_dir():  # else another submission was first
                raise
    return copy


def _files() -> Iterator[tuple[str, Path]]:
    """Yield the files of the program, each with its place in a checkout."""
    folders = {package: _ROOT / package for package in _PACKAGES} | {"conf": conf_dir()}
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            is_conf_again = name == "loopcoder" and inner.parts[0] == "conf"
            if path.is_file() and "__pycache__" not in inner.parts and not is_conf_again:
                yield f"{name}/{inner.as_posix()}", path

"""The files below a folder, or those that match a pattern; what is not read is counted and named.

The rules are those of tar and ripgrep. Hidden files and folders of copies (`node_modules`,
`__pycache__`) are left out, whether a folder lists them or a pattern matches them. A linked file is
read, once; a linked folder is not followed, unless a path names it: it may lead anywhere, or round
in a circle. Pipes, sockets and devices are no documents, and opening them may hang.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.readers.storage import SKIPPED_FOLDERS, File
from loopcoder.data.places import TOKEN_BYTES

_MAGIC = re.compile(r"[*?\[]")
_MISSING = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class ListedFile:
    """A file as it was when it was listed."""

    file: File
    size: int
    """Bytes."""
    version: int | str
    """Modification time in ns, or what a store has of the kind."""


@dataclass
class Listing:
    """What paths and patterns stand for."""

    files: dict[str, ListedFile] = field(default_factory=dict)
    """By their full names."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Files and folders, with a / at their end, that are not read: why, in one word."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files and folders that this user may not read, or whose disk fails: the error."""

    seen: Callable[[int], None] = lambda _: None
    """Is told how many files there are, after each."""

    def add(self, path: Path) -> bool:
        """List a file, a folder or a pattern; tell whether there is such a thing.

        A name that exists is meant literally, even if it contains [ or *, and read even if it is
        hidden or linked.
        """
        if self._exists(path):
            info = self._stat(path)
            if info is None:
                pass
            elif stat.S_ISDIR(info.st_mode):
                self._add_folder(path)
            else:
                self._add_file(path)
            return True
        return bool(_MAGIC.search(str(path))) and self._add_matches(path)

    def ordered(self) -> list[ListedFile]:
        """Return the files, sorted by the parts of their names."""
        return [self.files[name] for name in sorted(self.files, key=lambda name: name.split("/"))]

    def _exists(self, path: Path) -> bool:
        try:
            os.lstat(path)
        except (*_MISSING, ValueError):
            return False
        except OSError as error:
            if _MAGIC.search(str(path)):  # a long pattern is no name
                return False
            self._failed(error, path)
        return True

    def _failed(self, error: OSError, path: Path | None = None) -> None:
        self.unreadable[str(path or error.filename)] = error.strerror or str(error)

    def _stat(self, path: Path) -> os.stat_result | None:
        """Return what a name leads to; None: nothing that can be read, which is noted."""
        try:
            return path.stat()
        except OSError as error:
            if not isinstance(error, _MISSING) and error.errno != errno.ELOOP:
                self._failed(error, path)
            elif path.is_symlink():  # else it was removed just now
                self.left_out[str(path)] = "broken_link"
        return None

    def _add_file(self, path: Path, full: Path | None = None) -> None:
        """List a file; without its real name, that is asked for."""
        info = self._stat(path)
        if info is None:
            return
        try:
            full = full or _real(path)
        except OSError as error:  # links of /proc may be followed and yet not be read
            self._failed(error, path)
            return
        if not stat.S_ISREG(info.st_mode):
            self.left_out[str(path)] = "special_file"
        elif not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            self.unreadable[str(path)] = "Permission denied"
        else:
            self.files[str(full)] = ListedFile(full, info.st_size, info.st_mtime_ns)
            self.seen(len(self.files))

    def _add_listed(self, path: Path, full: Path) -> None:
        """List a file of a folder whose real name is known."""
        if path.name.startswith("."):
            self.left_out[str(path)] = "hidden"
        else:
            try:
                is_link = full.is_symlink()
            except OSError as error:  # names may be listed, but nothing is known of them
                self._failed(error, path)
                return
            self._add_file(path, None if is_link else full)

    def _is_followed(self, folder: Path) -> bool:
        """Tell whether a folder is looked into; note why it is not."""
        if folder.name.startswith("."):
            self.left_out[f"{folder}/"] = "hidden"
        elif folder.name in SKIPPED_FOLDERS:
            self.left_out[f"{folder}/"] = "skipped_folder"
        elif folder.is_symlink():
            self.left_out[f"{folder}/"] = "linked_folder"
        else:
            return True
        return False

    def _add_folder(self, root: Path) -> None:
        try:
            real = root.resolve()
        except OSError as error:
            self._failed(error, root)
            return
        for folder, folders, names in os.walk(root, onerror=self._failed):
            here = Path(folder)
            full = real / here.relative_to(root)
            if TOKEN_BYTES in names:  # a corpus that was built below the documents
                self.left_out[f"{folder}/"] = "finished_corpus"
                folders.clear()
                continue
            folders[:] = [name for name in folders if self._is_followed(here / name)]
            for name in names:
                self._add_listed(here / name, full / name)

    def _add_matches(self, pattern: Path) -> bool:
        """List what matches a pattern, folders with all that is below them; tell if anything."""
        fixed = _MAGIC.split(str(pattern), maxsplit=1)[0].split("/")[:-1]
        start = Path("/".join(fixed) or ("/" if pattern.is_absolute() else "."))
        stack = [(start, str(pattern).split("/")[len(fixed) :])]
        found = False
        while stack:
            folder, (part, *rest) = stack.pop()
            if part == "**":
                stack.append((folder, rest or ["*"]))
                folders = [p for p, is_folder in self._entries(folder) if is_folder and rest]
                stack += [(path, ["**", *rest]) for path in folders if self._is_followed(path)]
                continue
            for path, is_folder in self._matching(folder, part):
                # what the pattern spells out is meant
                is_meant = path.name == part or path.name.startswith(".")
                if rest:
                    if is_folder and (is_meant or self._is_followed(path)):
                        stack.append((path, rest))
                    continue
                found = True
                if not is_folder:
                    self._add_file(path)
                elif is_meant or self._is_followed(path):
                    self._add_folder(path)
        return found

    def _matching(self, folder: Path, part: str) -> Iterator[tuple[Path, bool]]:
        if not _MAGIC.search(part):
            path = folder / part
            if os.path.lexists(path):
                yield path, path.is_dir()
            return
        fits = re.compile(fnmatch.translate(part)).match
        for path, is_folder in self._entries(folder):
            if fits(path.name) and (part.startswith(".") or not path.name.startswith(".")):
                yield path, is_folder

    def _entries(self, folder: Path) -> list[tuple[Path, bool]]:
        """Return what is in a folder, and which of it are folders."""
        try:
            with os.scandir(folder) as entries:
                return [(folder / entry.name, _is_folder(entry)) for entry in entries]
        except _MISSING:
            return []
        except OSError as error:
            self._failed(error, folder)
            return []


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # which Path.resolve refuses for a circle of links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or nothing that may be looked at: told where it is listed
        return False

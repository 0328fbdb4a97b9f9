"""Files inside archives, read one after the other without unpacking to disk."""

from __future__ import annotations

import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Literal

from data_pipeline.readers.compressed import TRUNCATED, decompressed
from data_pipeline.readers.storage import File, is_disk_fault, why_unwanted
from data_pipeline.schema import Place, Tally
from loopcoder.errors import LoopcoderError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip", ".whl")
MAX_MEMBER_BYTES = 64 << 20
"""Larger files of an archive are left out; a reader holds one in memory."""
MAX_EXPANSION = 100
"""Bytes that one byte of an archive may become; source code gives 3 to 20."""
_ALWAYS_ALLOWED_BYTES = 64 << 20
_UTF8_NAME = 0x08
"""Of the high byte of a zip's flags (APPNOTE 4.4.4, bit 11)."""


@dataclass(frozen=True)
class Member:
    """A file of an archive, already in memory."""

    archive: str
    path: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"{self.archive}!{self.path}"

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        return io.BytesIO(self.content)

    def read_bytes(self) -> bytes:
        return self.content


def members(file: File, size: int, tally: Tally) -> Iterator[Member]:
    """Yield the regular files of an archive without unpacking it to disk.

    Some are left out and counted as files: paths that lead out of the archive (`unsafe_member`), a
    second file of the same name (`duplicate_member`), hidden, encrypted and too large ones. An
    archive that expands to more than 100 times its size is left at that point (`archive_bomb`). A
    damaged packed tar yields nothing; a plain one yields the files before the damage, a zip all
    that are whole, and one that is cut off yields its good prefix.
    """
    allowed = MAX_EXPANSION * size + _ALWAYS_ALLOWED_BYTES
    packer = file.name.rpartition(".")[2].lower()
    seen: set[str] = set()
    try:
        read = _zip_members if packer in ("zip", "whl") else _tar_members
        for path, content in read(file, allowed, tally):
            if path in seen:
                tally.drop_file("duplicate_member", f"{file}!{path}")
            elif content is not None:
                yield Member(str(file), path, content)
            seen.add(path)
    except _BombError:
        tally.damaged("archive_bomb", Place(str(file), num_bytes=size))
    except LoopcoderError:
        raise
    except Exception as error:  # headers may be wrong in as many ways as there are fields
        if is_disk_fault(error):
            raise
        tally.damaged(f"corrupt_{packer}", Place(str(file), num_bytes=size))


class _BombError(Exception):
    """An archive expands to more than it may."""


def _is_allowed(file: File, path: str, num_bytes: int, tally: Tally) -> bool:
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if path.startswith(("/", "\\")) or ".." in parts or ":" in (parts[0] if parts else ""):
        reason = "unsafe_member"
    elif unwanted := why_unwanted(path):
        reason = unwanted
    elif num_bytes > MAX_MEMBER_BYTES:
        reason = "too_large_member"
    else:
        return True
    tally.drop_file(reason, Place(f"{file}!{path}", num_bytes=num_bytes))
    return False


def _tar_members(file: File, allowed: int, tally: Tally) -> Iterator[tuple[str, bytes | None]]:
    was_truncated = tally.file_drops[TRUNCATED]
    if not file.name.lower().endswith(".tar"):
        total = 0
        # an extra pass: nothing of a corrupt file may get through
        for piece in decompressed(file, tally):
            total += len(piece)
            if total > allowed:
                raise _BombError
    stream = _Stream(decompressed(file), allowed)
    is_cut = False
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.size > allowed:  # tarfile would skip that many bytes, for years
                    raise tarfile.HeaderError(f"a file of {member.size} bytes")
                path = member.name.removeprefix("./")
                if not member.isreg() and not member.isdir():
                    tally.drop_file("link_member", f"{file}!{path}")
                elif member.isreg() and _is_allowed(file, path, member.size, tally):
                    inner = archive.extractfile(member)
                    assert inner is not None
                    content = inner.read()
                    if len(content) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield path, content
    except tarfile.ReadError as e:
        is_cut = stream.is_done and "unexpected end" in str(e)
        if not is_cut:
            raise
    # a tar ends with blocks of zeros
    is_cut |= stream.is_done and bool(stream.tail.strip(b"\0"))
    if is_cut and tally.file_drops[TRUNCATED] == was_truncated:  # else its decompressor counted it
        tally.damaged(TRUNCATED, file)


def _zip_members(file: File, allowed: int, tally: Tally) -> Iterator[tuple[str, bytes | None]]:
    total = 0
    with file.open("rb") as stored, _opened_zip(stored) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                tally.drop_file("link_member", f"{file}!{info.filename}")
                continue
            if not _is_allowed(file, info.filename, info.file_size, tally):
                continue
            if info.flag_bits & 1:
                tally.drop_file("encrypted_member", f"{file}!{info.filename}")
                continue
            total += info.file_size
            if total > allowed:
                raise _BombError
            try:
                with archive.open(info) as packed:
                    # with a size: a plain read() ignores the size in the archive's directory
                    content = packed.read(info.file_size)
            except Exception as error:  # each of four packers, and zipfile itself, has its own
                if is_disk_fault(error):
                    raise
                tally.damaged("corrupt_zip_member", f"{file}!{info.filename}")
                continue
            yield info.filename, content


def _opened_zip(stored: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip; names that are said to be UTF-8 and are not are read as those of old DOS are.

    zipfile refuses all of an archive for one of them. Without the bit that says so it reads them.
    """
    try:
        return zipfile.ZipFile(stored)
    except UnicodeDecodeError:
        stored.seek(0)
        content = bytearray(stored.read(_ALWAYS_ALLOWED_BYTES))
    for header, high_flags in ((b"PK\1\2", 9), (b"PK\3\4", 7)):
        for found in re.finditer(re.escape(header), bytes(content)):
            if (place := found.start() + high_flags) < len(content):
                content[place] &= ~_UTF8_NAME
    return zipfile.ZipFile(io.BytesIO(content))


class _Stream(io.RawIOBase):
    """Pieces as a file; raises when there are more bytes than allowed."""

    def __init__(self, pieces: Iterator[bytes], allowed: int) -> None:
        self._pieces = pieces
        self._allowed = allowed
        self._rest = b""
        self.is_done = False
        self.tail = b""
        """The last 512 bytes read so far."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        wanted = size if size >= 0 else self._allowed + 1
        have = len(self._rest)
        while have < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                self.is_done = True
                break
            self._allowed -= len(piece)
            if self._allowed < 0:
                raise _BombError
            self.tail = (self.tail + piece[-512:])[-512:]
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        self._rest = data[wanted:]
        return data[:wanted]
